//! What a schema is made of, made at random and grown.

use super::Rng;

#[derive(Clone)]
pub struct Schema {
    pub enums: Vec<Enum>,
    pub structs: Vec<Struct>,
    pub methods: Vec<String>,
}

#[derive(Clone)]
pub struct Enum {
    pub name: String,
    pub enumerants: Vec<String>,
}

#[derive(Clone)]
pub struct Struct {
    pub name: String,
    pub parameters: usize,
    pub members: Vec<Member>,
    /// Ordinals that are given.
    pub ordinals: usize,
    /// Names that are given.
    names: Vec<String>,
}

#[derive(Clone)]
pub enum Member {
    Field(Field),
    Group(String, Vec<Field>),
    Union(String, Vec<InUnion>),
    /// A union without a name.
    Unnamed(Vec<InUnion>),
}

#[derive(Clone)]
pub enum InUnion {
    Field(Field),
    Group(String, Vec<Field>),
}

#[derive(Clone)]
pub struct Field {
    pub name: String,
    pub ordinal: usize,
    pub type_: Type,
    pub default: Option<String>,
}

#[derive(Clone)]
pub enum Type {
    Primitive(&'static str),
    Text,
    Data,
    List(Box<Type>),
    Enum(usize),
    Struct(usize, Vec<Type>),
    Parameter(usize),
    Link(usize),
}

const PRIMITIVES: [&str; 12] = [
    "Void", "Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64",
    "Float32", "Float64",
];

const TYPE_NAMES: [&str; 12] = [
    "Option", "Result", "Box", "String", "Vec", "Self", "Default", "Reader", "Builder", "Node",
    "Plain", "Owned",
];

const ENUM_NAMES: [&str; 3] = ["Which", "From", "Kind"];

const NAMES: [&str; 40] = [
    "type", "match", "self", "async", "await", "gen", "try", "dyn", "crate", "super", "box",
    "from", "to", "value", "message", "reader", "builder", "owned", "some", "none", "ok", "err",
    "default", "clone", "option", "string", "vec", "i", "u8", "fooBar", "aBC", "x", "once", "core",
    "std", "pipeline", "numbers", "known", "fn", "u16",
];

impl Schema {
    pub fn random(rng: &mut Rng) -> Self {
        let mut schema = Self {
            enums: Vec::new(),
            structs: Vec::new(),
            methods: Vec::new(),
        };
        for name in &ENUM_NAMES[..1 + rng.below(ENUM_NAMES.len())] {
            let mut enumerants = Vec::new();
            for _ in 0..1 + rng.below(4) {
                fresh(rng, &mut enumerants);
            }
            schema.enums.push(Enum {
                name: (*name).to_owned(),
                enumerants,
            });
        }
        let count = 3 + rng.below(4);
        let offset = rng.below(TYPE_NAMES.len());
        for index in 0..count {
            let name = TYPE_NAMES[(offset + index) % TYPE_NAMES.len()];
            schema.structs.push(Struct {
                name: name.to_owned(),
                parameters: if rng.one_in(3) { 1 + rng.below(2) } else { 0 },
                members: Vec::new(),
                ordinals: 0,
                names: Vec::new(),
            });
        }
        for index in 0..count {
            let members = rng.below(5);
            schema.add_members(rng, index, members);
        }
        for _ in 0..2 {
            fresh(rng, &mut schema.methods);
        }
        schema
    }

    /// What a later version has: more enumerants, members and fields.
    pub fn grow(&mut self, rng: &mut Rng) {
        for enum_ in &mut self.enums {
            fresh(rng, &mut enum_.enumerants);
        }
        for index in 0..self.structs.len() {
            for at in 0..self.structs[index].members.len() {
                if !rng.one_in(2) {
                    continue;
                }
                let name = self.name(rng, index);
                let field = self.field(rng, index, name, true);
                match &mut self.structs[index].members[at] {
                    Member::Union(_, members) | Member::Unnamed(members) => {
                        members.push(InUnion::Field(field));
                    }
                    Member::Group(_, fields) => fields.push(field),
                    Member::Field(_) => self.structs[index].members.push(Member::Field(field)),
                }
            }
            let members = 1 + rng.below(3);
            self.add_members(rng, index, members);
        }
    }

    fn add_members(&mut self, rng: &mut Rng, index: usize, count: usize) {
        for _ in 0..count {
            let has_unnamed = |member: &Member| matches!(member, Member::Unnamed(_));
            let member = match rng.below(8) {
                0 => {
                    let name = self.name(rng, index);
                    Member::Group(name, self.fields(rng, index, 1))
                }
                1 => {
                    let name = self.name(rng, index);
                    Member::Union(name, self.in_union(rng, index))
                }
                2 if !self.structs[index].members.iter().any(has_unnamed) => {
                    Member::Unnamed(self.in_union(rng, index))
                }
                _ => {
                    let name = self.name(rng, index);
                    Member::Field(self.field(rng, index, name, false))
                }
            };
            self.structs[index].members.push(member);
        }
    }

    fn in_union(&mut self, rng: &mut Rng, index: usize) -> Vec<InUnion> {
        let mut members = Vec::new();
        for _ in 0..2 + rng.below(3) {
            let name = self.name(rng, index);
            members.push(match rng.one_in(4) {
                true => InUnion::Group(name, self.fields(rng, index, 2)),
                false => InUnion::Field(self.field(rng, index, name, true)),
            });
        }
        members
    }

    fn fields(&mut self, rng: &mut Rng, index: usize, least: usize) -> Vec<Field> {
        let count = least + rng.below(2);
        (0..count)
            .map(|_| {
                let name = self.name(rng, index);
                self.field(rng, index, name, false)
            })
            .collect()
    }

    /// A name that nothing in the struct has.
    fn name(&mut self, rng: &mut Rng, index: usize) -> String {
        let names = &mut self.structs[index].names;
        fresh(rng, names);
        names[names.len() - 1].clone()
    }

    fn field(&mut self, rng: &mut Rng, index: usize, name: String, may_be_void: bool) -> Field {
        let mut type_ = self.type_(rng, index, 2);
        if matches!(type_, Type::Primitive("Void")) && !may_be_void {
            type_ = Type::Text;
        }
        let default = match rng.one_in(3) {
            true => self.default(rng, &type_),
            false => None,
        };
        let struct_ = &mut self.structs[index];
        struct_.ordinals += 1;
        Field {
            name,
            ordinal: struct_.ordinals - 1,
            type_,
            default,
        }
    }

    fn type_(&self, rng: &mut Rng, index: usize, depth: usize) -> Type {
        match rng.below(12) {
            0 if self.structs[index].parameters > 0 => {
                Type::Parameter(rng.below(self.structs[index].parameters))
            }
            1..4 => Type::Primitive(rng.pick::<&'static str>(&PRIMITIVES)),
            4 => Type::Enum(rng.below(self.enums.len())),
            5 => Type::Data,
            6 | 7 if depth > 0 => loop {
                let element = self.type_(rng, index, depth - 1);
                if !matches!(element, Type::Parameter(_) | Type::Primitive("Void")) {
                    break Type::List(Box::new(element));
                }
            },
            8 | 9 if depth > 0 => self.struct_type(rng, index, depth),
            10 => Type::Link(rng.below(self.structs.len())),
            _ => Type::Text,
        }
    }

    /// A struct without parameters, itself with its own, or an earlier one with others: no struct grows for ever.
    fn struct_type(&self, rng: &mut Rng, index: usize, depth: usize) -> Type {
        let to = rng.below(self.structs.len());
        let parameters = self.structs[to].parameters;
        if to == index {
            return Type::Struct(to, (0..parameters).map(Type::Parameter).collect());
        }
        if parameters > 0 && to > index {
            return Type::Text;
        }
        let arguments = (0..parameters).map(|_| match rng.below(4) {
            0 => Type::Text,
            1 => Type::Data,
            2 => Type::List(Box::new(Type::Primitive("Float64"))),
            _ => match rng.one_in(2) {
                true => Type::List(Box::new(Type::Enum(rng.below(self.enums.len())))),
                false if self.structs[to].parameters > 0 && depth > 1 => {
                    let plain = (0..index).find(|other| self.structs[*other].parameters == 0);
                    plain.map_or(Type::Text, |other| Type::Struct(other, Vec::new()))
                }
                false => Type::Text,
            },
        });
        Type::Struct(to, arguments.collect())
    }

    fn default(&self, rng: &mut Rng, type_: &Type) -> Option<String> {
        Some(match type_ {
            Type::Primitive("Void") => return None,
            Type::Primitive("Bool") => "true".into(),
            Type::Primitive("Float32" | "Float64") => {
                (*rng.pick(&["nan", "inf", "-inf", "1.5", "-0.25"])).into()
            }
            Type::Primitive(number) if number.starts_with('U') => (*rng.pick(&["1", "255"])).into(),
            Type::Primitive(_) => (*rng.pick(&["1", "-128", "127"])).into(),
            Type::Text => (*rng.pick(&["\"default\"", "\"\"", "\"\\\"$crate\""])).into(),
            Type::Data => (*rng.pick(&["0x\"01ff\"", "\"\""])).into(),
            Type::Enum(index) => rng.pick(&self.enums[*index].enumerants).clone(),
            Type::List(element) => {
                let element = self.default(rng, element)?;
                format!("[{element}, {element}]")
            }
            Type::Struct(..) | Type::Parameter(_) | Type::Link(_) => return None,
        })
    }
}

/// Adds a name that is not there yet.
fn fresh(rng: &mut Rng, names: &mut Vec<String>) {
    let first = (*rng.pick(&NAMES)).to_owned();
    let numbered = (1..).map(|n| format!("{first}{n}"));
    let name = std::iter::once(first.clone())
        .chain(numbered)
        .find(|name| !names.contains(name));
    names.extend(name);
}
