//! The metrics' HTTP server: `GET /metrics`, a bounded number of connections, and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::daemon::{App, DaemonError};
use crate::metrics::text;

/// Connections at once; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// For a request's head to come.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// A connection is closed after this, whatever it does; a scraper makes another.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// OpenMetrics' media type.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens on the metrics' address.
///
/// # Errors
/// Where the address cannot be had.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address).await.map_err(|source| DaemonError::Metrics { address, source })
}

/// Answers scrapes until `stop` turns true.
pub async fn serve(listener: TcpListener, app: Rc<App>, mut stop: watch::Receiver<bool>) {
    let places = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = Rc::clone(&places);
            // Never closed, so never an error.
            let permit = place.acquire().await.map(|permit| permit.forget()).ok();
            (permit, listener.accept().await)
        };
        let stream = tokio::select! {
            (_, accepted) = accepted => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (app, places) = (Rc::clone(&app), Rc::clone(&places));
        match stream {
            Ok((stream, _)) => {
                tokio::task::spawn_local(async move {
                    answer_all(stream, app).await;
                    places.add_permits(1);
                });
            }
            Err(error) => {
                places.add_permits(1);
                tracing::warn!(%error, "cannot accept a scrape of the metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(stream: TcpStream, app: Rc<App>) {
    let service = service_fn(move |request| {
        let app = Rc::clone(&app);
        async move { Ok::<_, Infallible>(answer(&request, &app).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // A scraper that breaks off or sends rubbish is its own trouble.
    drop(timeout(CONNECTION_LIMIT, connection).await);
}

async fn answer(request: &Request<Incoming>, app: &Rc<App>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match text::render(app).await {
            Ok(text) => {
                let mut response = Response::new(Full::new(Bytes::from(text)));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(MEDIA_TYPE));
                response
            }
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
        },
        "/" => plain(StatusCode::OK, "penstockd: metrics are at /metrics\n"),
        _ => plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
