//! The reactor's own group of sockets.

use penstock_reactor::net::{Interest, READY_MAX, SocketGroup, TcpSocket};
use penstock_reactor::sys::wake::SleepSet;

use crate::exchange::{Flow, Meter, RECV_BYTES, Side};
use crate::plain::{receive, send};

/// Runs one side to its end.
pub(crate) fn drive(
    sockets: &[TcpSocket],
    side: &Side,
    owed: u32,
    meter: &mut Meter<'_>,
) -> anyhow::Result<()> {
    let sleep_set = SleepSet::new()?;
    let mut group = SocketGroup::new(&sleep_set)?;
    let mut conns = Vec::new();
    let (mut buf, mut pieces) = (vec![0; RECV_BYTES], Vec::new());
    for (key, socket) in (0..).zip(sockets) {
        let mut flow = Flow::new(owed, u64::from(key) + 1);
        group.add(socket, key, Interest::READ)?;
        let all = send(&mut flow, socket, side, &mut pieces)?;
        group.want_write(socket, key, !all)?;
        conns.push((flow, socket));
    }
    let mut ready = Vec::with_capacity(READY_MAX);
    let mut messages = 0;
    while meter.turn(messages) {
        messages = 0;
        group.poll(&mut ready);
        for ready in &ready {
            let Some((flow, socket)) = conns.get_mut(usize::try_from(ready.key)?) else { continue };
            if ready.readable {
                let received = receive(flow, socket, side, &mut buf)?;
                group.note(ready.key, received.is_some());
                messages += received.unwrap_or(0);
            }
            if flow.owes() {
                let all = send(flow, socket, side, &mut pieces)?;
                group.want_write(socket, ready.key, !all)?;
            }
        }
    }
    Ok(())
}
