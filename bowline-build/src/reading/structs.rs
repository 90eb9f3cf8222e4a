//! Reading structs, groups and unions.

use capnp::schema_capnp::{field, node};

use super::Reading;
use crate::Error;
use crate::annotations::{Annotation, Annotations};
use crate::model::{Default, Field, FieldKind, Key, Struct, Type};
use crate::names::{Scope, identifier, pascal, snake, variant};

impl<'a> Reading<'a> {
    pub(super) fn struct_(
        &self,
        id: u64,
        name: &str,
        reader: node::struct_::Reader<'a>,
    ) -> Result<Struct, Error> {
        let place = self.place(id);
        let node = self.node(id)?;
        let annotations = Annotations::new(&place, node.get_annotations()?);
        annotations.check_each_once()?;
        let (mut fields, mut variants) = (Vec::new(), Vec::new());
        let members = in_code_order(reader)?;
        let mut field_names = Scope::default();
        let mut variant_names = Scope::default();
        let in_union = |(_, field): &(usize, field::Reader<'_>)| is_in_union(*field);
        if members.iter().any(in_union) && !members.iter().all(in_union) {
            field_names.reserve("which", "the field for the union");
        }
        variant_names.reserve("Unknown", "the variant for what the schema does not have");
        for (index, member) in members {
            let field = self.field(id, index, member)?;
            let owner = format!("`{}`", field.name);
            let place = format!("{place}.{}", field.name);
            if is_in_union(member) {
                variant_names.take(field.variant.clone(), owner, &place)?;
                variants.push(field);
            } else {
                field_names.take(field.rust.clone(), owner, &place)?;
                fields.push(field);
            }
        }
        let topic = annotations.name(Annotation::Topic)?.map(str::to_owned);
        let queue = annotations.name(Annotation::Queue)?.map(str::to_owned);
        let is_group = reader.get_is_group();
        let mut keys = Vec::new();
        if !is_group {
            self.find_keys(
                id,
                &mut Vec::new(),
                topic.is_some() || queue.is_some(),
                &mut keys,
            )?;
        }
        Ok(Struct {
            id,
            name: name.to_owned(),
            schema_name: place
                .rsplit([':', '.'])
                .next()
                .unwrap_or_default()
                .to_owned(),
            capnp: self.capnp_path(id)?,
            parameters: self.parameters(id)?,
            is_group,
            fields,
            variants,
            secrets: self.secrets(id)?,
            docs: self.docs_of(id),
            topic,
            queue,
            key: keys.pop(),
            place,
        })
    }

    /// The fields with `$key` of a struct and its groups; more than one is an error.
    fn find_keys(
        &self,
        id: u64,
        outer: &mut Vec<(String, String)>,
        has_use: bool,
        found: &mut Vec<Key>,
    ) -> Result<(), Error> {
        let node::Struct(struct_) = self.node(id)?.which()? else {
            return Ok(());
        };
        for (_, member) in in_code_order(struct_)? {
            let name = member.get_name()?.to_str()?;
            let place = format!("{}.{name}", self.place(id));
            let annotations = Annotations::new(&place, member.get_annotations()?);
            let error = |reason: &str| Err(annotations.error(Annotation::Key, None, reason));
            outer.push((name.to_owned(), snake(&self.base_of_field(member, id)?)));
            if annotations.has(Annotation::Key) {
                let type_ = match member.which()? {
                    field::Slot(slot) => Some(self.type_(slot.get_type()?, &place)?),
                    field::Group(_) => None,
                };
                let is_text = matches!(type_, Some(Type::Text));
                let is_whole_number =
                    matches!(type_, Some(Type::Primitive(number)) if !number.starts_with('f'));
                if !has_use {
                    return error("means something only in a struct with $topic or $queue");
                }
                if self.is_below_union(id)? || is_in_union(member) || !(is_text || is_whole_number)
                {
                    return error("is for Text, integers and Bool, and not for members of a union");
                }
                if annotations.has(Annotation::Secret) {
                    return error(
                        "and $secret exclude each other: the key is in the topic, in the log and on disk; \
                         use another field as the key",
                    );
                }
                if !found.is_empty() {
                    return error("is on another field too; a struct has one key");
                }
                let names: Vec<&str> = outer.iter().map(|(name, _)| &name[..]).collect();
                found.push(Key {
                    name: names.join("."),
                    path: outer.iter().map(|(_, rust)| identifier(rust)).collect(),
                    is_text,
                });
            }
            if let field::Group(group) = member.which()? {
                self.find_keys(group.get_type_id(), outer, has_use, found)?;
            }
            outer.pop();
        }
        Ok(())
    }

    /// Whether a group, or one that it is in, is a member of a union.
    fn is_below_union(&self, id: u64) -> Result<bool, Error> {
        let node = self.node(id)?;
        let node::Struct(struct_) = node.which()? else {
            return Ok(false);
        };
        if !struct_.get_is_group() {
            return Ok(false);
        }
        let outer = node.get_scope_id();
        if let node::Struct(around) = self.node(outer)?.which()? {
            for member in around.get_fields()? {
                if let field::Group(group) = member.which()?
                    && group.get_type_id() == id
                    && is_in_union(member)
                {
                    return Ok(true);
                }
            }
        }
        self.is_below_union(outer)
    }

    /// The names of its secret fields; of those in its groups, `group.field`.
    fn secrets(&self, id: u64) -> Result<Vec<String>, Error> {
        let mut secrets = Vec::new();
        let node::Struct(struct_) = self.node(id)?.which()? else {
            return Ok(secrets);
        };
        for (_, member) in in_code_order(struct_)? {
            let name = member.get_name()?.to_str()?;
            if Annotations::new("", member.get_annotations()?).has(Annotation::Secret) {
                secrets.push(name.to_owned());
            }
            if let field::Group(group) = member.which()? {
                let inner = self.secrets(group.get_type_id())?;
                secrets.extend(inner.into_iter().map(|inner| format!("{name}.{inner}")));
            }
        }
        Ok(secrets)
    }

    fn field(
        &self,
        struct_id: u64,
        index: usize,
        field: field::Reader<'a>,
    ) -> Result<Field, Error> {
        let name = field.get_name()?.to_str()?.to_owned();
        let place = format!("{}.{name}", self.place(struct_id));
        let annotations = Annotations::new(&place, field.get_annotations()?);
        annotations.check_each_once()?;
        self.check_growth(field, struct_id, &place)?;
        let kind = match field.which()? {
            field::Group(group) => FieldKind::Group {
                rust: self.rust_path(group.get_type_id(), &place)?,
            },
            field::Slot(slot) => {
                let type_ = slot.get_type()?;
                let is_recursive = self.leads_to(type_, struct_id, false)?;
                let default = self.default(slot)?;
                if is_recursive && matches!(default, Default::Other) {
                    return Err(Error::unsupported(
                        place,
                        "a default of a field that can contain its own struct",
                        "leave it out: such a field is empty until it is set",
                    ));
                }
                let is_unbounded = self.leads_to(type_, struct_id, true)?;
                let type_ = self.type_(type_, &place)?;
                FieldKind::Slot {
                    is_recursive: is_recursive && matches!(type_, Type::Struct { .. }),
                    type_,
                    default,
                    is_unbounded,
                }
            }
        };
        let base = self.base_of_field(field, struct_id)?;
        let capnp = &self.names.members[&struct_id][index];
        Ok(Field {
            rust: identifier(&snake(&base)),
            variant: variant(&base),
            accessor: snake(capnp),
            capnp_variant: pascal(capnp),
            index: index as u16,
            discriminant: field.get_discriminant_value(),
            kind,
            is_secret: annotations.has(Annotation::Secret),
            docs: self.docs_of_member(struct_id, index),
            name,
        })
    }
}

/// The fields as the schema has them, each with its index.
fn in_code_order(
    struct_: node::struct_::Reader<'_>,
) -> Result<Vec<(usize, field::Reader<'_>)>, Error> {
    let mut members: Vec<_> = struct_.get_fields()?.iter().enumerate().collect();
    members.sort_by_key(|(_, field)| field.get_code_order());
    Ok(members)
}

fn is_in_union(field: field::Reader<'_>) -> bool {
    field.get_discriminant_value() != field::NO_DISCRIMINANT
}
