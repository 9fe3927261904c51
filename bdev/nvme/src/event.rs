//! Events of controllers' threads, taken on the control thread.

use std::future::poll_fn;
use std::pin::Pin;

use futures_channel::mpsc::UnboundedReceiver;

/// What an event asks for and takes a while; it goes on beside the events that follow.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Hands every event to `take` and carries the works it gives back, until nobody can send another.
pub(crate) async fn take_all<E>(mut events: UnboundedReceiver<E>, mut take: impl FnMut(E) -> Option<Work>) {
    let mut works: Vec<Work> = Vec::new();
    loop {
        let mut event = std::pin::pin!(events.recv());
        let event = poll_fn(|cx| {
            works.retain_mut(|work| work.as_mut().poll(cx).is_pending());
            event.as_mut().poll(cx)
        });
        match event.await {
            Ok(event) => works.extend(take(event)),
            Err(_) => return,
        }
    }
}
