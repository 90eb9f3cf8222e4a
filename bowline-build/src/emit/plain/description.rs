//! What the schema says about a struct: its description, its topic, its queue.

use super::Emit;

impl Emit<'_> {
    pub(super) fn description(&self, code: &mut String) {
        let Self {
            of, declared, used, ..
        } = self;
        let option = |text: Option<&String>| match text {
            Some(text) => format!("Some({text:?})"),
            None => "None".to_owned(),
        };
        let secrets: Vec<String> = of.secrets.iter().map(|name| format!("{name:?}")).collect();
        *code += &format!(
            "impl{declared} $crate::schema::Described for {}{used} {{\n\
             const INFO: &'static $crate::schema::StructInfo = &$crate::schema::StructInfo {{ \
             name: {:?}, id: {:#x}, topic: {}, queue: {}, key: {}, secrets: &[{}] }};\n}}\n",
            of.name,
            of.schema_name,
            of.id,
            option(of.topic.as_ref()),
            option(of.queue.as_ref()),
            option(of.key.as_ref().map(|key| &key.name)),
            secrets.join(", "),
        );
        if let Some(topic) = &of.topic {
            self.name_and_key(code, "$crate::topic::Topic", topic);
        }
        if let Some(queue) = &of.queue {
            self.name_and_key(code, "$crate::queue::Queueable", queue);
        }
    }

    /// The trait of what is published or pushed: under which name, and with which key.
    fn name_and_key(&self, code: &mut String, of_trait: &str, name: &str) {
        let Self {
            of, declared, used, ..
        } = self;
        let key = match &of.key {
            None => "::core::option::Option::None".to_owned(),
            Some(key) => {
                let value = format!("self.{}", key.path.join("."));
                match key.is_text {
                    true => format!("Some(::std::borrow::Cow::Borrowed(&{value}[..]))"),
                    false => format!(
                        "Some(::std::borrow::Cow::Owned(::std::string::ToString::to_string(&{value})))"
                    ),
                }
            }
        };
        *code += &format!(
            "impl{declared} {of_trait} for {}{used} {{\n\
             const NAME: &'static str = {name:?};\n\
             fn key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {{ {key} }}\n}}\n",
            of.name
        );
    }
}
