//! A JSON-RPC 2.0 client for the daemon's control socket: one JSON object after another, with nothing in between.

use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A control command is answered within this, or a test fails.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What the daemon refused, as it said it.
#[derive(Debug)]
pub struct RpcError {
    /// The method.
    pub method: String,
    /// The code of JSON-RPC or a negative errno.
    pub code: i64,
    /// The words.
    pub message: String,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was refused: {} (code {})", self.method, self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

/// Calls `method` on the socket at `path`, over a connection of its own.
///
/// # Errors
/// An [`RpcError`] where the daemon refuses; others where it does not answer.
pub fn call(path: &Path, method: &str, params: &Value) -> Result<Value> {
    let mut stream =
        UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let request = match params {
        Value::Null => json!({"jsonrpc": "2.0", "id": 1, "method": method}),
        params => json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}),
    };
    stream.write_all(&serde_json::to_vec(&request)?)?;
    let answer = serde_json::Deserializer::from_reader(stream).into_iter::<Value>().next();
    let answer = answer.with_context(|| format!("no answer to {method}"))?;
    let answer = answer.with_context(|| format!("no valid answer to {method}"))?;
    if let Some(error) = answer.get("error") {
        let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
        let message = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
        return Err(RpcError { method: method.to_owned(), code, message }.into());
    }
    match answer.get("result") {
        Some(result) => Ok(result.clone()),
        None => bail!("the answer to {method} has neither a result nor an error: {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::paths::Scratch;

    fn answered_with(answer: &'static str) -> Result<Value> {
        let scratch = Scratch::new().unwrap();
        let path = scratch.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            serde_json::from_slice::<Value>(&request[..length]).unwrap()
        });
        let result = call(&path, "bdev_get_bdevs", &json!({"name": "x"}));
        assert_eq!(server.join().unwrap()["method"], "bdev_get_bdevs");
        result
    }

    #[test]
    fn a_result_is_returned_and_an_error_keeps_its_code() {
        assert_eq!(answered_with(r#"{"jsonrpc":"2.0","id":1,"result":[7]}"#).unwrap(), json!([7]));
        let refused = answered_with(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-19,"message":"no bdev x"}}"#);
        let error = refused.unwrap_err().downcast::<RpcError>().unwrap();
        assert_eq!((error.code, error.message.as_str()), (-19, "no bdev x"));
    }
}
