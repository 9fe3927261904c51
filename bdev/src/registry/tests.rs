use std::task::{Context, Poll, Waker};

use uuid::Uuid;

use super::*;
use crate::null::Null;

fn with_null(name: &str) -> Registry {
    let registry = Registry::new();
    registry
        .register(Null::new(name, Uuid::from_u128(7), 1000, 512).unwrap(), &["other".to_owned()])
        .unwrap();
    registry
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_bdev_is_found_by_name_alias_and_uuid_and_none_of_them_is_given_twice() {
    let registry = with_null("n0");
    for name in ["n0", "other", "00000000-0000-0000-0000-000000000007"] {
        assert_eq!(registry.find(name).unwrap().shared().name(), "n0");
    }
    assert!(matches!(registry.find("n1"), Err(BdevError::NotFound { name }) if name == "n1"));
    let twin = Null::new("n1", Uuid::from_u128(7), 1000, 512).unwrap();
    assert!(matches!(registry.register(twin, &[]), Err(BdevError::Exists { .. })));
    let namesake = Null::new("other", Uuid::from_u128(8), 1000, 512).unwrap();
    assert!(matches!(registry.register(namesake, &[]), Err(BdevError::Exists { name }) if name == "other"));
}

#[test]
fn a_claim_keeps_other_writers_out_until_its_last_clone_is_dropped() {
    let registry = with_null("n0");
    let reader = registry.open("n0", OpenMode::ReadOnly, "reader").unwrap();
    let claim = registry.claim("n0", "filter").unwrap();
    let clone = claim.clone();
    drop(claim);
    assert_eq!(registry.claimed_by("n0").unwrap().as_deref(), Some("filter"));
    let refused = registry.open("n0", OpenMode::ReadWrite, "writer");
    assert!(matches!(refused, Err(BdevError::Claimed { owner, .. }) if owner == "filter"));
    assert!(matches!(registry.claim("n0", "second"), Err(BdevError::Claimed { .. })));
    std::thread::spawn(move || drop(clone)).join().unwrap();
    let writer = registry.open("n0", OpenMode::ReadWrite, "writer").unwrap();
    assert!(
        matches!(registry.claim("n0", "second"), Err(BdevError::InUse { users, .. }) if users == "writer")
    );
    assert_eq!(registry.users("n0").unwrap(), ["reader", "writer"]);
    drop((reader, writer));
    assert!(registry.users("n0").unwrap().is_empty());
}

#[test]
fn exports_share_a_bdev_and_nobody_else_may_write_it() {
    let registry = with_null("n0");
    let nvme = registry.export("n0", "nvme").unwrap();
    let scsi = registry.export("n0", "scsi").unwrap();
    assert!(
        matches!(registry.claim("n0", "filter"), Err(BdevError::Claimed { owner, .. }) if owner == "nvme")
    );
    assert!(registry.open("n0", OpenMode::ReadWrite, "writer").is_err());
    drop((nvme, scsi));
    let filter = registry.claim("n0", "filter").unwrap();
    assert!(matches!(registry.export("n0", "scsi"), Err(BdevError::Claimed { .. })));
    drop(filter);
    registry.export("n0", "scsi").unwrap();
}

#[test]
fn a_removed_bdev_is_told_of_and_dropped_after_its_last_descriptor() {
    let registry = with_null("n0");
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&events);
    let subscription = registry.subscribe(move |event| seen.borrow_mut().push(event.kind));
    let descriptor = registry.open("n0", OpenMode::ReadWrite, "user").unwrap();
    let weak = Arc::downgrade(&registry.find("n0").unwrap());
    let mut removal = Box::pin(registry.remove("n0"));
    assert!(poll_once(removal.as_mut()).is_pending());
    assert_eq!(*events.borrow(), [EventKind::Removing]);
    assert!(descriptor.shared().is_removed());
    let refused = registry.open("n0", OpenMode::ReadOnly, "late");
    assert!(matches!(refused, Err(BdevError::Removing { .. })));
    drop(descriptor);
    assert!(poll_once(removal.as_mut()).is_ready());
    assert_eq!(*events.borrow(), [EventKind::Removing, EventKind::Removed]);
    assert!(weak.upgrade().is_none() && registry.list().is_empty());
    drop(subscription);
    registry.register(Null::new("n0", Uuid::from_u128(7), 1, 512).unwrap(), &[]).unwrap();
    assert_eq!(events.borrow().len(), 2, "no events after the subscription");
}

/// A removal whose future was dropped used to leave the bdev "being removed" for ever.
#[test]
fn a_removal_that_nobody_waits_for_ends_with_the_last_descriptor() {
    let registry = with_null("n0");
    let descriptor = registry.open("n0", OpenMode::ReadWrite, "user").unwrap();
    {
        let mut removal = Box::pin(registry.remove("n0"));
        assert!(poll_once(removal.as_mut()).is_pending());
    }
    assert!(matches!(
        poll_once(Box::pin(registry.remove("n0")).as_mut()),
        Poll::Ready(Err(BdevError::Removing { .. }))
    ));
    drop(descriptor);
    let again = Null::new("n0", Uuid::from_u128(7), 1, 512).unwrap();
    registry.register(again, &[]).unwrap();
    assert_eq!(registry.find("n0").unwrap().shared().blocks(), 1);
}

#[test]
fn the_task_that_looks_after_removals_is_woken_by_the_last_close_on_another_thread() {
    struct Flag(std::sync::atomic::AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let registry = with_null("n0");
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&events);
    let subscription = registry.subscribe(move |event| seen.borrow_mut().push(event.kind));
    let descriptor = registry.open("n0", OpenMode::ReadWrite, "user").unwrap();
    let flag = Arc::new(Flag(false.into()));
    let waker = Waker::from(Arc::clone(&flag));
    let mut task = Box::pin(registry.look_after_removals());
    assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(poll_once(Box::pin(registry.remove("n0")).as_mut()));
    std::thread::spawn(move || drop(descriptor)).join().unwrap();
    assert!(flag.0.load(std::sync::atomic::Ordering::SeqCst), "the task was woken");
    assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(*events.borrow(), [EventKind::Removing, EventKind::Removed]);
    assert!(registry.list().is_empty());
    drop((registry, subscription));
    assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready(), "it ends with the registry");
}
