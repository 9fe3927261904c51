//! Bytes of a connection into JSON texts, and JSON texts into requests. Sans-IO.

use serde_json::{Map, Value, json};

use crate::rpc::error::{METHOD_NOT_FOUND, RpcError};

/// Bytes of one request or batch at most.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Objects and arrays in one another at most.
pub const DEPTH_MAX: usize = 64;
/// Requests of one batch at most.
pub const BATCH_MAX: usize = 1024;
/// Characters of a method's name at most; no method has so many.
const METHOD_LEN_MAX: usize = 128;

const _: () = assert!(DEPTH_MAX < 128, "serde_json itself stops at 128");

/// Cuts a stream of bytes into JSON objects and arrays, one after another, with or without white space between.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were looked at.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// Takes bytes that came in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their request.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole object or array.
    ///
    /// # Errors
    /// Where what came is the beginning of neither, or is too large or too deep. Nothing after that can be understood.
    pub fn next_text(&mut self) -> Result<Option<Vec<u8>>, RpcError> {
        self.skip_white_space();
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.scanned >= REQUEST_BYTES_MAX {
                return Err(self.too_large());
            }
            if self.depth == 0 && !matches!(byte, b'{' | b'[') {
                let shown = char::from(byte).escape_default();
                let message =
                    format!("a request must begin with '{{' (or a batch with '['), not with '{shown}'");
                return Err(RpcError::parse(message));
            }
            self.scanned += 1;
            if self.step(byte)? {
                let rest = self.buffer.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
        }
        if self.buffer.len() >= REQUEST_BYTES_MAX {
            return Err(self.too_large());
        }
        Ok(None)
    }

    /// Looks at one byte; true where it ends a whole text.
    fn step(&mut self, byte: u8) -> Result<bool, RpcError> {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    let message = format!("the request has objects and arrays more than {DEPTH_MAX} deep");
                    return Err(RpcError::parse(message));
                }
            }
            b'}' | b']' => {
                self.depth -= 1;
                return Ok(self.depth == 0);
            }
            _ => {}
        }
        Ok(false)
    }

    fn skip_white_space(&mut self) {
        if self.depth > 0 {
            return;
        }
        let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.buffer.drain(..blank);
    }

    fn too_large(&self) -> RpcError {
        RpcError::parse(format!(
            "the request has more than {REQUEST_BYTES_MAX} bytes; send its parts one by one"
        ))
    }
}

/// One request: what to call, and whether an answer is wanted.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// The answer's `id`; `None` for a notification, which gets no answer.
    pub id: Option<Value>,
    /// The method.
    pub method: String,
    /// Its parameters; an empty object where there are none.
    pub params: Value,
}

/// What one JSON text asks for.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// One request, or why it is none (with its `id`, where it has one).
    Single(Result<Request, (Value, RpcError)>),
    /// Several, answered by one array.
    Batch(Vec<Result<Request, (Value, RpcError)>>),
}

/// Reads one JSON text.
///
/// # Errors
/// Where the text is no JSON, or an empty or too long batch.
pub fn parse(text: &[u8]) -> Result<Message, RpcError> {
    let bad = |error: serde_json::Error| RpcError::parse(format!("the request is not valid JSON: {error}"));
    match serde_json::from_slice(text).map_err(bad)? {
        Value::Array(parts) if parts.is_empty() => Err(RpcError::invalid_request("the batch is empty")),
        Value::Array(parts) if parts.len() > BATCH_MAX => {
            let message = format!("the batch has {} requests; send {BATCH_MAX} at most", parts.len());
            Err(RpcError::invalid_request(message))
        }
        Value::Array(parts) => Ok(Message::Batch(parts.into_iter().map(request).collect())),
        value => Ok(Message::Single(request(value))),
    }
}

fn request(value: Value) -> Result<Request, (Value, RpcError)> {
    let Value::Object(mut object) = value else {
        return Err((Value::Null, RpcError::invalid_request("a request must be an object")));
    };
    let id = object.remove("id");
    let answer_id = match &id {
        Some(id @ (Value::Number(_) | Value::String(_))) => id.clone(),
        _ => Value::Null,
    };
    read_members(id, object).map_err(|message| (answer_id, RpcError::invalid_request(message)))
}

fn read_members(id: Option<Value>, mut object: Map<String, Value>) -> Result<Request, String> {
    match &id {
        None | Some(Value::Null | Value::Number(_) | Value::String(_)) => {}
        Some(other) => return Err(format!("id must be a number or a string, not {}", kind_of(other))),
    }
    match object.remove("jsonrpc") {
        Some(Value::String(version)) if version == "2.0" => {}
        Some(other) => return Err(format!("jsonrpc must be \"2.0\", not {}", shown(&other))),
        None => return Err("the request has no member jsonrpc; it must be \"2.0\"".to_owned()),
    }
    let method = match object.remove("method") {
        Some(Value::String(method)) if method.len() <= METHOD_LEN_MAX => method,
        Some(Value::String(method)) => {
            return Err(format!("the method's name has {} bytes; no method has so many", method.len()));
        }
        Some(other) => return Err(format!("method must be a string, not {}", kind_of(&other))),
        None => return Err("the request has no member method".to_owned()),
    };
    let params = match object.remove("params") {
        None | Some(Value::Null) => json!({}),
        Some(params @ Value::Object(_)) => params,
        Some(other) => {
            return Err(format!("params of {method} must be an object, not {}", kind_of(&other)));
        }
    };
    if let Some(name) = object.keys().next() {
        return Err(format!(
            "the request has an unknown member {}; known are jsonrpc, id, method and params",
            shown(&Value::String(name.clone()))
        ));
    }
    Ok(Request { id, method, params })
}

/// What kind of JSON value it is, for people.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value for a message, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// The answer to one request.
#[must_use]
pub fn response(id: &Value, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error.to_json()}),
    }
}

/// The error for a method that is not there, with the nearest one that is.
#[must_use]
pub fn unknown_method<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> RpcError {
    let near = known.map(|other| (distance(name, other), other)).min();
    let asked = shown(&Value::String(name.to_owned()));
    let message = match near {
        Some((edits, other)) if edits <= 1 + name.len() / 4 => {
            format!("there is no method {asked}; did you mean {other}? rpc_get_methods lists all")
        }
        _ => format!("there is no method {asked}; rpc_get_methods lists all"),
    };
    RpcError::new(METHOD_NOT_FOUND, message)
}

/// Edits that make one word the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(row.first_mut().unwrap_or(&mut 0), index + 1);
        let mut left = index + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(&to) {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
