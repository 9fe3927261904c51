//! Plain system calls on every socket, every turn.

use std::io::IoSlice;

use penstock_reactor::net::TcpSocket;

use crate::exchange::{Flow, Meter, RECV_BYTES, Side};

/// Runs one side to its end.
pub(crate) fn drive(
    sockets: &[TcpSocket],
    side: &Side,
    owed: u32,
    meter: &mut Meter<'_>,
) -> anyhow::Result<()> {
    let mut flows: Vec<Flow> = (1..).map(|seed| Flow::new(owed, seed)).take(sockets.len()).collect();
    let (mut buf, mut pieces) = (vec![0; RECV_BYTES], Vec::new());
    let mut messages = 0;
    while meter.turn(messages) {
        messages = 0;
        for (flow, socket) in flows.iter_mut().zip(sockets) {
            messages += receive(flow, socket, side, &mut buf)?.unwrap_or(0);
            send(flow, socket, side, &mut pieces)?;
        }
    }
    Ok(())
}

/// One receive; how many messages became whole, `None` when nothing came.
pub(crate) fn receive(
    flow: &mut Flow,
    socket: &TcpSocket,
    side: &Side,
    buf: &mut [u8],
) -> std::io::Result<Option<u64>> {
    Ok(socket.recv(buf)?.map(|len| flow.received(len, side)))
}

/// Sends what is owed; false when there is more than the kernel takes just now.
pub(crate) fn send(
    flow: &mut Flow,
    socket: &TcpSocket,
    side: &Side,
    pieces: &mut Vec<IoSlice<'static>>,
) -> std::io::Result<bool> {
    while flow.owes() {
        flow.fill(side, pieces);
        let Some(len) = socket.send_vectored(pieces)? else { return Ok(false) };
        flow.sent(len, side);
    }
    Ok(true)
}
