//! Reading structs, groups and unions.

use capnp::schema_capnp::{field, node, type_};

use super::Reading;
use crate::Error;
use crate::annotations::{Annotation, Annotations};
use crate::model::{Field, FieldKind, Struct, Type};
use crate::names::{Scope, snake, variant};

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
        let mut members: Vec<(usize, field::Reader<'a>)> =
            reader.get_fields()?.iter().enumerate().collect();
        members.sort_by_key(|(_, field)| field.get_code_order());
        let (mut fields, mut variants) = (Vec::new(), Vec::new());
        let in_union = |(_, field): &(usize, field::Reader<'_>)| {
            field.get_discriminant_value() != field::NO_DISCRIMINANT
        };
        let mut field_names = Scope::default();
        let mut variant_names = Scope::default();
        if members.iter().any(in_union) && !members.iter().all(in_union) {
            field_names.reserve("which", "the field for the union");
        }
        variant_names.reserve("Unknown", "the variant for what the schema does not have");
        for (index, member) in members {
            let mut field = self.field(id, member)?;
            field.docs = self.docs_of_member(id, index);
            let owner = format!("`{}`", field.name);
            let place = format!("{place}.{}", field.name);
            if member.get_discriminant_value() == field::NO_DISCRIMINANT {
                field_names.take(field.accessor.clone(), owner, &place)?;
                fields.push(field);
            } else {
                variant_names.take(variant(&field.name, &place)?, owner, &place)?;
                variants.push(field);
            }
        }
        let mut keys = fields.iter().chain(&variants).filter(|field| field.is_key);
        if let (Some(_), Some(second)) = (keys.next(), keys.next()) {
            let place = format!("{place}.{}", second.name);
            return Err(Annotations::new(&place, node.get_annotations()?).error(
                Annotation::Key,
                None,
                "is on another field too; a struct has one key",
            ));
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
            is_group: reader.get_is_group(),
            fields,
            variants,
            secrets: self.secrets(id)?,
            docs: self.docs_of(id),
            topic: annotations.name(Annotation::Topic)?.map(str::to_owned),
            queue: annotations.name(Annotation::Queue)?.map(str::to_owned),
        })
    }

    /// The names of its secret fields; of those in its groups, `group.field`.
    fn secrets(&self, id: u64) -> Result<Vec<String>, Error> {
        let mut secrets = Vec::new();
        let node::Struct(struct_) = self.node(id)?.which()? else {
            return Ok(secrets);
        };
        let mut members: Vec<field::Reader<'a>> = struct_.get_fields()?.iter().collect();
        members.sort_by_key(|field| field.get_code_order());
        for member in members {
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

    fn field(&self, struct_id: u64, field: field::Reader<'a>) -> Result<Field, Error> {
        let name = field.get_name()?.to_str()?.to_owned();
        let place = format!("{}.{name}", self.place(struct_id));
        let annotations = Annotations::new(&place, field.get_annotations()?);
        let is_key = annotations.has(Annotation::Key);
        let in_union = field.get_discriminant_value() != field::NO_DISCRIMINANT;
        let kind = match field.which()? {
            field::Group(group) => FieldKind::Group {
                rust: self.rust_path(group.get_type_id(), &place)?,
            },
            field::Slot(slot) => {
                let type_ = slot.get_type()?;
                let is_recursive = match type_.which()? {
                    type_::Struct(inner) => {
                        let inner = inner.get_type_id();
                        inner == struct_id
                            || self
                                .reaches
                                .get(&inner)
                                .is_some_and(|r| r.contains(&struct_id))
                    }
                    _ => false,
                };
                FieldKind::Slot {
                    type_: self.type_(type_, &place)?,
                    has_default: slot.get_had_explicit_default(),
                    is_recursive,
                }
            }
        };
        let can_be_key = matches!(
            &kind,
            FieldKind::Slot {
                type_: Type::Text,
                ..
            }
        ) || matches!(
            &kind,
            FieldKind::Slot { type_: Type::Primitive(p), .. } if !p.starts_with('f')
        );
        if is_key && (in_union || !can_be_key) {
            return Err(annotations.error(
                Annotation::Key,
                None,
                "is for Text, integers and Bool, and not for members of a union",
            ));
        }
        Ok(Field {
            accessor: snake(&name),
            kind,
            is_secret: annotations.has(Annotation::Secret),
            is_key,
            docs: String::new(),
            name,
        })
    }
}
