//! A JSON-RPC client that waits for its answers.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::CliError;
use crate::rpc::RpcError;

/// An answer comes within this, or the daemon is taken for dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

impl Client {
    /// Connects to the control socket.
    ///
    /// # Errors
    /// [`CliError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, CliError> {
        let open = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.set_write_timeout(Some(ANSWER_LIMIT))?;
            Ok(stream)
        };
        match open() {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), next_id: 1 }),
            Err(source) => Err(CliError::Connect { path: path.to_owned(), source }),
        }
    }

    /// Calls a method; a parameter that is null was not given, and is left out.
    ///
    /// # Errors
    /// As [`Self::call_with`].
    pub fn call(&mut self, method: &str, mut params: Value) -> Result<Value, CliError> {
        if let Value::Object(params) = &mut params {
            params.retain(|_, value| !value.is_null());
        }
        self.call_with(method, &params)
    }

    /// Calls a method with exactly these parameters.
    ///
    /// # Errors
    /// What the daemon refuses with; [`CliError::Answer`] where it does not answer.
    pub fn call_with(&mut self, method: &str, params: &Value) -> Result<Value, CliError> {
        let broken = |source| CliError::Answer { method: method.to_owned(), source };
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.stream.get_mut().write_all(request.to_string().as_bytes()).map_err(broken)?;
        let mut answers = serde_json::Deserializer::from_reader(&mut self.stream).into_iter::<Value>();
        let mut answer = match answers.next() {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(broken(error.into())),
            None => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
        };
        if let Some(error) = answer.get("error") {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
            let message = error.get("message").and_then(Value::as_str).unwrap_or_default();
            return Err(CliError::Refused { error: RpcError::new(code, message) });
        }
        Ok(answer.get_mut("result").map(Value::take).unwrap_or_default())
    }
}
