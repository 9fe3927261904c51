//! Queues on a reactor that is turned by hand, with a driver of a test's own on the other side.

mod guest;
mod hostile;
mod no_allocation;
mod requests;
