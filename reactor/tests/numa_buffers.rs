//! Buffers of several NUMA nodes, in a process of its own because memory is set up once per process.

use penstock_reactor::mem::{self, Buf, MemConfig};

/// A thread that changed its node used to give the old node's cached buffers out as the new one's, and so back to the
/// wrong node.
#[test]
fn buffers_go_back_to_the_node_they_came_from_and_no_cache_outlives_its_thread() {
    mem::init(MemConfig { nodes: 2, initial_bytes: 64 << 20, ..MemConfig::default() }).unwrap();
    let whole = mem::stats();
    assert_eq!(whole.mapped_bytes, 128 << 20);
    let node_of = |buf: &Buf| {
        let address = buf.as_ptr().addr();
        let home =
            mem::arenas().into_iter().find(|arena| (arena.base..arena.base + arena.len).contains(&address));
        home.unwrap().node
    };
    let work = move || {
        for round in 0..6 {
            mem::bind_thread_to_node(round % 2);
            let bufs: Vec<Buf> = [4096, 65_536, 1 << 20].into_iter().filter_map(Buf::alloc).collect();
            assert_eq!(bufs.iter().map(node_of).collect::<Vec<_>>(), vec![round % 2; 3]);
            mem::bind_thread_to_node((round + 1) % 2);
            drop(bufs);
        }
    };
    std::thread::spawn(work).join().unwrap();
    assert_eq!(mem::stats(), whole);
}
