//! Random schemas as text: as a schema file, and as the Rust that makes values of its types.

use std::fmt::Write as _;

use super::schema::{Field, InUnion, Member, Schema, Struct, Type};

pub fn capnp(schema: &Schema, id: u64, n: u64) -> String {
    let mut text = format!("@{id:#x};\nusing Bowline = import \"/bowline/bowline.capnp\";\n");
    for enum_ in &schema.enums {
        let enumerants = enum_.enumerants.iter().enumerate();
        let list: Vec<String> = enumerants
            .map(|(n, name)| format!("{name} @{n};"))
            .collect();
        let _ = writeln!(text, "enum {} {{ {} }}", enum_.name, list.join(" "));
    }
    for struct_ in &schema.structs {
        let _ = writeln!(
            text,
            "struct {}{} {{",
            struct_.name,
            in_parentheses((0..struct_.parameters).map(parameter))
        );
        for member in &struct_.members {
            match member {
                Member::Field(field) => text += &field_text(schema, field),
                Member::Group(name, fields) => {
                    let _ = writeln!(text, "{name} :group {{ {} }}", fields_text(schema, fields));
                }
                Member::Union(name, members) => {
                    let _ = writeln!(text, "{name} :union {{ {} }}", union_text(schema, members));
                }
                Member::Unnamed(members) => {
                    let _ = writeln!(text, "union {{ {} }}", union_text(schema, members));
                }
            }
        }
        text += "}\n";
    }
    let _ = writeln!(text, "interface Methods $Bowline.service(\"s{n}\") {{");
    for (n, name) in schema.methods.iter().enumerate() {
        let _ = writeln!(
            text,
            "{name} @{n} ({name} :Text) -> ({name} :List(Float32));"
        );
    }
    text + "}\n"
}

fn parameter(n: usize) -> String {
    ["T", "t"][n].to_owned()
}

fn in_parentheses(list: impl Iterator<Item = String>) -> String {
    let list: Vec<String> = list.collect();
    match list.is_empty() {
        true => String::new(),
        false => format!("({})", list.join(", ")),
    }
}

fn field_text(schema: &Schema, field: &Field) -> String {
    let default = field.default.as_ref();
    format!(
        "{} @{} : {}{};\n",
        field.name,
        field.ordinal,
        type_text(schema, &field.type_),
        default.map_or(String::new(), |default| format!(" = {default}"))
    )
}

fn fields_text(schema: &Schema, fields: &[Field]) -> String {
    fields
        .iter()
        .map(|field| field_text(schema, field))
        .collect()
}

fn union_text(schema: &Schema, members: &[InUnion]) -> String {
    let one = |member: &InUnion| match member {
        InUnion::Field(field) => field_text(schema, field),
        InUnion::Group(name, fields) => {
            format!("{name} :group {{ {} }}\n", fields_text(schema, fields))
        }
    };
    members.iter().map(one).collect()
}

fn type_text(schema: &Schema, type_: &Type) -> String {
    match type_ {
        Type::Primitive(name) => (*name).to_owned(),
        Type::Text => "Text".into(),
        Type::Data => "Data".into(),
        Type::List(element) => format!("List({})", type_text(schema, element)),
        Type::Enum(index) => format!(".{}", schema.enums[*index].name),
        Type::Struct(index, arguments) => format!(
            ".{}{}",
            schema.structs[*index].name,
            in_parentheses(arguments.iter().map(|argument| type_text(schema, argument)))
        ),
        Type::Parameter(n) => parameter(*n),
        Type::Link(index) => {
            let texts = (0..schema.structs[*index].parameters).map(|_| "Text".to_owned());
            format!(
                "Bowline.Link(.{}{})",
                schema.structs[*index].name,
                in_parentheses(texts)
            )
        }
    }
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn identifier(name: &str) -> String {
    match name {
        "self" | "super" | "crate" | "Self" => format!("{name}_"),
        "type" | "match" | "async" | "await" | "gen" | "try" | "dyn" | "box" | "fn" => {
            format!("r#{name}")
        }
        name => name.to_owned(),
    }
}

fn pascal(name: &str) -> String {
    name[..1].to_uppercase() + &name[1..]
}

/// The Rust that gives each type of a module random values.
pub fn values(schema: &Schema, module: &str) -> String {
    let mut code = String::new();
    let path = |name: &str| format!("bowline_test_schemas::{module}::{name}");
    for enum_ in &schema.enums {
        let variants: Vec<String> = enum_
            .enumerants
            .iter()
            .map(|name| format!("Self::{}", identifier(&pascal(name))))
            .collect();
        let _ = writeln!(
            code,
            "impl Random for {} {{ fn random(rng: &mut Rng, _: u32) -> Self {{\n\
             *rng.pick(&[{}, Self::Unknown(200), Self::Unknown(65535)]) }} }}",
            path(&enum_.name),
            variants.join(", ")
        );
    }
    for struct_ in &schema.structs {
        let rust = identifier(&struct_.name);
        let body = body(struct_, &path(&rust));
        implement(&mut code, struct_, &path(&rust), &body);
        for member in &struct_.members {
            let group = |name: &str| path(&format!("{rust}{}", pascal(name)));
            match member {
                Member::Group(name, fields) => {
                    implement(&mut code, struct_, &group(name), &assign(fields, "value"));
                }
                Member::Union(name, members) => {
                    let body = format!("value = {};\n", choose(members, "Self"));
                    implement(&mut code, struct_, &group(name), &body);
                }
                Member::Field(_) | Member::Unnamed(_) => {}
            }
            if let Member::Union(union, members) = member {
                for (name, fields) in groups(members) {
                    let path = path(&format!("{rust}{}{}", pascal(union), pascal(name)));
                    implement(&mut code, struct_, &path, &assign(fields, "value"));
                }
            }
            if let Member::Unnamed(members) = member {
                for (name, fields) in groups(members) {
                    implement(&mut code, struct_, &group(name), &assign(fields, "value"));
                }
            }
        }
    }
    code
}

fn groups(members: &[InUnion]) -> impl Iterator<Item = (&String, &Vec<Field>)> {
    members.iter().filter_map(|member| match member {
        InUnion::Group(name, fields) => Some((name, fields)),
        InUnion::Field(_) => None,
    })
}

fn implement(code: &mut String, struct_: &Struct, path: &str, body: &str) {
    let (declared, used) = match struct_.parameters {
        0 => ("", ""),
        1 => ("<T: Random + Plain>", "<T>"),
        _ => ("<T: Random + Plain, U: Random + Plain>", "<T, U>"),
    };
    let _ = writeln!(
        code,
        "#[allow(unused_mut, unused_assignments, unused_variables, clippy::all, clippy::pedantic)]\n\
         impl{declared} Random for {path}{used} {{ fn random(rng: &mut Rng, depth: u32) -> Self {{\n\
         let mut value = Self::default();\n{body}value }} }}"
    );
}

/// The statements that set the members of a struct.
fn body(struct_: &Struct, path: &str) -> String {
    let is_unnamed = |member: &&Member| matches!(member, Member::Unnamed(_));
    if let [Member::Unnamed(members)] = &struct_.members[..] {
        return format!("value = {};\n", choose(members, "Self"));
    }
    let mut body = String::new();
    for member in struct_.members.iter().filter(|member| !is_unnamed(member)) {
        let name = match member {
            Member::Field(field) => &field.name,
            Member::Group(name, _) | Member::Union(name, _) => name,
            Member::Unnamed(_) => continue,
        };
        let name = identifier(&snake(name));
        let _ = writeln!(body, "value.{name} = Random::random(rng, depth);");
    }
    for member in struct_.members.iter().filter(is_unnamed) {
        if let Member::Unnamed(members) = member {
            let _ = writeln!(
                body,
                "value.which = {};",
                choose(members, &format!("{path}Which"))
            );
        }
    }
    body
}

fn assign(fields: &[Field], place: &str) -> String {
    let one = |field: &Field| {
        let name = identifier(&snake(&field.name));
        format!("{place}.{name} = Random::random(rng, depth);\n")
    };
    fields.iter().map(one).collect()
}

/// An expression for one of the members.
fn choose(members: &[InUnion], enum_: &str) -> String {
    let mut arms = String::new();
    for (n, member) in members.iter().enumerate() {
        let (name, is_void) = match member {
            InUnion::Field(field) => (&field.name, matches!(field.type_, Type::Primitive("Void"))),
            InUnion::Group(name, _) => (name, false),
        };
        let pattern = match n + 1 == members.len() {
            true => "_".to_owned(),
            false => n.to_string(),
        };
        let variant = identifier(&pascal(name));
        let content = if is_void {
            ""
        } else {
            "(Random::random(rng, depth))"
        };
        let _ = writeln!(arms, "{pattern} => {enum_}::{variant}{content},");
    }
    format!("match rng.below({}) {{\n{arms}}}", members.len())
}

/// The calls that check each struct of a schema.
pub fn checks(schema: &Schema, n: u64) -> String {
    let mut code = String::new();
    for (index, struct_) in schema.structs.iter().enumerate() {
        let arguments = match struct_.parameters {
            0 => "",
            1 => "::<Vec<f64>>",
            _ => "::<String, Bytes>",
        };
        let name = identifier(&struct_.name);
        let of = |folder: &str| format!("bowline_test_schemas::{folder}::s{n}::{name}{arguments}");
        let (old, new) = (of("random_old"), of("random_new"));
        let _ = writeln!(code, "check::<{old}>({index});\ncheck::<{new}>({index});");
        let _ = writeln!(code, "check_versions::<{old}, {new}>({index});");
    }
    code
}
