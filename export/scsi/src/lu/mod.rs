//! A logical unit: its view, which every core has, and its owner, which is one.

mod owner;
mod view;

pub(crate) use owner::access_fault;
pub use owner::{Control, LuOwner, PrCommand, Reply, SharedReservations};
pub(crate) use view::EVENTS_MAX;
pub use view::{Audience, Event, LuView, ModeValues};
