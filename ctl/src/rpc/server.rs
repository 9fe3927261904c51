//! The server on the control socket: connections, their limits, and who may connect.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::rpc::error::RpcError;
use crate::rpc::method::LocalFuture;
use crate::rpc::wire::{self, Framer, Message, Request};

/// Connections at most.
pub const CONNECTIONS_MAX: usize = 64;
/// A client that does not take its answer loses its connection after this.
pub const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// A client that began a request sends the rest of it within this, or loses its connection.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Code of the refusal of one connection too many.
const TOO_MANY: i64 = -32000;
/// Code of the refusal of somebody else's connection (`EPERM`).
const NOT_ALLOWED: i64 = -1;

/// What answers the calls.
pub trait Service {
    /// Answers one call.
    fn call(self: Rc<Self>, method: String, params: Value) -> LocalFuture<Result<Value, RpcError>>;
}

/// Accepts connections until `stop` turns true, then lets the calls under way end.
///
/// # Errors
/// Where the listener breaks.
pub async fn serve(
    listener: UnixListener,
    service: Rc<dyn Service>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let open = Rc::new(Cell::new(0_usize));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, usually: it passes, and must not spin.
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let refusal = refusal(&stream, uid, open.get());
        let (service, stop) = (Rc::clone(&service), stop.clone());
        let taken = Taken::new(&open);
        connections.spawn_local(async move {
            let done = match refusal {
                Some(error) => refuse(stream, error).await,
                None => converse(stream, service, stop).await,
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a control connection ended");
            }
            drop(taken);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// One connection's place among [`CONNECTIONS_MAX`].
struct Taken(Rc<Cell<usize>>);

impl Taken {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn refusal(stream: &UnixStream, uid: u32, open: usize) -> Option<RpcError> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid || peer.uid() == 0 => {}
        Ok(peer) => {
            let message = format!("user {} may not control this daemon; user {uid} and root may", peer.uid());
            return Some(RpcError::new(NOT_ALLOWED, message));
        }
        Err(error) => return Some(RpcError::new(NOT_ALLOWED, format!("cannot tell who you are: {error}"))),
    }
    (open >= CONNECTIONS_MAX).then(|| {
        let message = format!("{CONNECTIONS_MAX} clients are connected already; close one and try again");
        RpcError::new(TOO_MANY, message)
    })
}

async fn refuse(mut stream: UnixStream, error: RpcError) -> io::Result<()> {
    send(&mut stream, &wire::response(&Value::Null, Err(error))).await
}

/// Reads requests and answers them, in order, until the client goes or sends rubbish.
async fn converse(
    mut stream: UnixStream,
    service: Rc<dyn Service>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut framer = Framer::default();
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let text = match framer.next_text() {
            Ok(Some(text)) => text,
            Ok(None) => {
                let count = tokio::select! {
                    count = read(&mut stream, &mut bytes, framer.pending() > 0) => count?,
                    _ = stop.wait_for(|stop| *stop) => 0,
                };
                match bytes.get(..count) {
                    Some([]) | None => return Ok(()),
                    Some(came) => framer.push(came),
                }
                continue;
            }
            Err(error) => return refuse(stream, error).await,
        };
        let answer = match wire::parse(&text) {
            Ok(Message::Single(request)) => answer(&service, request).await,
            Ok(Message::Batch(requests)) => answer_all(&service, requests).await,
            Err(error) => return refuse(stream, error).await,
        };
        if let Some(answer) = answer {
            send(&mut stream, &answer).await?;
        }
        // A client that sends faster than others come to their turn must not keep the thread.
        tokio::task::yield_now().await;
    }
}

async fn read(stream: &mut UnixStream, bytes: &mut [u8], in_request: bool) -> io::Result<usize> {
    if !in_request {
        return stream.read(bytes).await;
    }
    match timeout(REQUEST_LIMIT, stream.read(bytes)).await {
        Ok(count) => count,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the rest of a request did not come")),
    }
}

async fn answer(service: &Rc<dyn Service>, request: Result<Request, (Value, RpcError)>) -> Option<Value> {
    match request {
        Ok(Request { id, method, params }) => {
            let result = Rc::clone(service).call(method, params).await;
            id.map(|id| wire::response(&id, result))
        }
        Err((id, error)) => Some(wire::response(&id, Err(error))),
    }
}

async fn answer_all(
    service: &Rc<dyn Service>,
    requests: Vec<Result<Request, (Value, RpcError)>>,
) -> Option<Value> {
    let mut answers = Vec::new();
    for request in requests {
        answers.extend(answer(service, request).await);
    }
    (!answers.is_empty()).then_some(Value::Array(answers))
}

async fn send(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    match timeout(WRITE_LIMIT, stream.write_all(&bytes)).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answers")),
    }
}
