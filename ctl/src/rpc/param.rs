//! Parameters of methods: one declaration gives the type that a handler gets, its check, and its documentation.

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use crate::rpc::error::RpcError;
use crate::rpc::wire::shown;

/// What is known of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name, as SPDK's where SPDK has it.
    pub name: &'static str,
    /// Its type, for people.
    pub kind: String,
    /// Whether the method refuses to run without it.
    pub required: bool,
    /// What it means, with its unit and default.
    pub doc: &'static str,
    /// Its members, where it is an object.
    pub members: Vec<Self>,
}

/// A type that a parameter may have.
pub trait ParamType {
    /// Whether the parameter must be there.
    const REQUIRED: bool = true;

    /// The type's name, for people.
    fn kind() -> String;

    /// The members, of an object.
    fn members() -> Vec<Param> {
        Vec::new()
    }
}

/// All parameters of a method; made by [`params!`](crate::params).
pub trait Params: DeserializeOwned {
    /// What is known of them.
    fn list() -> Vec<Param>;
}

macro_rules! kinds {
    ($($type:ty => $kind:literal),* $(,)?) => {
        $(impl ParamType for $type {
            fn kind() -> String {
                $kind.to_owned()
            }
        })*
    };
}

kinds! {
    String => "string",
    bool => "boolean",
    u8 => "uint8",
    u16 => "uint16",
    u32 => "uint32",
    u64 => "uint64",
    i32 => "int32",
    Uuid => "uuid",
    Value => "any",
}

impl<T: ParamType> ParamType for Option<T> {
    const REQUIRED: bool = false;

    fn kind() -> String {
        T::kind()
    }

    fn members() -> Vec<Param> {
        T::members()
    }
}

impl<T: ParamType> ParamType for Vec<T> {
    fn kind() -> String {
        format!("array of {}", T::kind())
    }

    fn members() -> Vec<Param> {
        T::members()
    }
}

/// A parameter of SPDK's whose feature this daemon does not have: accepted where it asks for nothing (0, false, "",
/// an empty list), refused else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Off;

impl<'de> Deserialize<'de> for Off {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let off = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => matches!(number.as_i64(), Some(0)),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if off {
            return Ok(Self);
        }
        let value = shown(&value);
        Err(D::Error::custom(format!(
            "{value} asks for something that this daemon does not have; leave it out"
        )))
    }
}

impl ParamType for Off {
    fn kind() -> String {
        "unsupported".to_owned()
    }
}

/// Declares the parameters of a method: a struct whose fields' docs are the parameters' docs. `Option` fields may be
/// left out.
#[macro_export]
macro_rules! params {
    ($(#[doc = $struct_doc:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty),* $(,)? }) => {
        $(#[doc = $struct_doc])+
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "a parameter that only checks itself is not read again")]
        pub(crate) struct $name {
            $($(#[doc = $doc])+ pub(crate) $field: $type,)*
        }

        impl $crate::rpc::param::Params for $name {
            fn list() -> Vec<$crate::rpc::param::Param> {
                vec![$($crate::rpc::param::Param {
                    name: stringify!($field),
                    kind: <$type as $crate::rpc::param::ParamType>::kind(),
                    required: <$type as $crate::rpc::param::ParamType>::REQUIRED,
                    doc: concat!($($doc),+).trim_ascii(),
                    members: <$type as $crate::rpc::param::ParamType>::members(),
                }),*]
            }
        }

        impl $crate::rpc::param::ParamType for $name {
            fn kind() -> String {
                "object".to_owned()
            }

            fn members() -> Vec<$crate::rpc::param::Param> {
                <Self as $crate::rpc::param::Params>::list()
            }
        }
    };
}

/// Describes the parameters of a method whose type is another crate's; a test holds the two against each other.
#[macro_export]
macro_rules! describe {
    ($name:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty),* $(,)? }) => {
        pub(crate) fn $name() -> Vec<$crate::rpc::param::Param> {
            vec![$($crate::rpc::param::Param {
                name: stringify!($field),
                kind: <$type as $crate::rpc::param::ParamType>::kind(),
                required: <$type as $crate::rpc::param::ParamType>::REQUIRED,
                doc: concat!($($doc),+).trim_ascii(),
                members: <$type as $crate::rpc::param::ParamType>::members(),
            }),*]
        }
    };
}

params! {
    /// No parameters.
    Nothing {}
}

/// Reads a method's parameters.
///
/// # Errors
/// Names the parameter that is unknown, missing, or of the wrong type.
pub fn read<P: Params>(method: &str, params: Value) -> Result<P, RpcError> {
    read_as(method, params, &P::list())
}

/// Reads a method's parameters, of which `known` is known.
///
/// # Errors
/// As [`read`].
pub fn read_as<T: DeserializeOwned>(method: &str, params: Value, known: &[Param]) -> Result<T, RpcError> {
    check_names(method, "", &params, known)?;
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("parameter {path}: ") };
        RpcError::invalid_params(format!("{method}: {place}{}", error.inner()))
    })
}

fn check_names(method: &str, path: &str, value: &Value, known: &[Param]) -> Result<(), RpcError> {
    let Value::Object(given) = value else { return Ok(()) };
    if let Some(name) = given.keys().find(|name| known.iter().all(|param| param.name != name.as_str())) {
        let names: Vec<&str> = known.iter().map(|param| param.name).collect();
        let takes = match names.as_slice() {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        let name = shown(&Value::String(format!("{path}{name}")));
        let message = format!("{method}: unknown parameter {name}; known parameters: {takes}");
        return Err(RpcError::invalid_params(message));
    }
    for param in known {
        match given.get(param.name) {
            None | Some(Value::Null) if param.required => {
                let name = format!("{path}{}", param.name);
                let message =
                    format!("{method}: parameter {name} is missing ({}: {})", param.kind, param.doc);
                return Err(RpcError::invalid_params(message));
            }
            Some(inner) if !param.members.is_empty() => {
                check_names(method, &format!("{path}{}.", param.name), inner, &param.members)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    params! {
        /// A place.
        Place {
            /// Street.
            street: String,
        }
    }

    params! {
        /// Of the tests.
        Sample {
            /// Its name.
            name: String,
            /// How many.
            /// Default: 1.
            count: Option<u32>,
            /// Where.
            place: Option<Place>,
            /// Of others.
            metadata: Option<Off>,
        }
    }

    fn refused(params: Value) -> String {
        let error = read::<Sample>("sample", params).unwrap_err();
        assert_eq!(error.code, -32602);
        error.message
    }

    #[test]
    fn every_refusal_names_the_method_and_the_parameter() {
        let known = "known parameters: name, count, place, metadata";
        assert_eq!(refused(json!({"nmae": 1})), format!("sample: unknown parameter \"nmae\"; {known}"));
        assert_eq!(refused(json!({})), "sample: parameter name is missing (string: Its name.)");
        assert!(refused(json!({"name": 1})).starts_with("sample: parameter name: invalid type"));
        let wide = refused(json!({"name": "n", "count": 1_u64 << 40}));
        assert!(wide.starts_with("sample: parameter count: ") && wide.contains("u32"), "{wide}");
        assert!(refused(json!({"name": "n", "place": {"strt": ""}})).contains("\"place.strt\""));
        assert!(refused(json!({"name": "n", "place": {}})).contains("place.street is missing"));
        assert!(refused(json!({"name": "n", "place": {"street": 5}})).contains("parameter place.street:"));
        assert!(refused(json!({"name": "n", "metadata": 8})).contains("parameter metadata: 8 asks"));
    }

    #[test]
    fn what_may_be_left_out_may_be_left_out_or_null() {
        let sample: Sample = read("sample", json!({"name": "n", "count": null, "metadata": false})).unwrap();
        assert_eq!((sample.name.as_str(), sample.count), ("n", None));
        let docs: Vec<_> = Sample::list().iter().map(|param| (param.kind.clone(), param.required)).collect();
        assert_eq!(docs[0], ("string".to_owned(), true));
        assert_eq!(docs[2], ("object".to_owned(), false));
    }
}
