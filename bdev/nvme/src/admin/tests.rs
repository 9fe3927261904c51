use penstock_bdev::Op;
use penstock_spec::nvme::event::NoticeEvent;

use super::*;
use crate::model::{Model, ModelNs, ModelTime};

/// Virtual time, in which the device can be pulled out.
struct Passing {
    time: ModelTime,
    model: Arc<Model>,
    /// The device is pulled out then.
    gone_at_ns: u64,
}

impl Waiter for Passing {
    fn now_ns(&mut self) -> u64 {
        self.time.now_ns()
    }

    fn wait(&mut self, ns: u64) {
        if self.now_ns() + ns >= self.gone_at_ns {
            self.model.inner().faults.gone = true;
        }
        self.time.wait(ns);
    }
}

const LIMIT_NS: u64 = 5_000_000_000;

fn found(model: &Arc<Model>) -> (Admin, Passing) {
    let registers: Arc<dyn Registers> = Arc::<Model>::clone(model);
    let admin = Admin::new(registers, Translator::identity(), LIMIT_NS).unwrap();
    (admin, Passing { time: ModelTime::new(model), model: Arc::clone(model), gone_at_ns: u64::MAX })
}

fn started(model: &Arc<Model>) -> (Admin, Passing) {
    let (mut admin, mut time) = found(model);
    admin.stop(&mut time).unwrap();
    admin.start(4, &mut time).unwrap();
    (admin, time)
}

fn usable(admin: &mut Admin, time: &mut Passing) -> Vec<(u32, Result<Namespace, Refusal>)> {
    admin.namespaces(time).unwrap()
}

#[test]
fn a_controller_comes_up_with_queues_shadows_and_events() {
    let model = Model::new();
    let (mut admin, mut time) = started(&model);
    assert_eq!((admin.io_queues(), admin.has_shadows()), (4, true));
    let ring = admin.ring(1, 5000).unwrap();
    assert_eq!(ring.entries(), 1024);
    assert!(admin.create(ring.place(), &mut time).unwrap().is_some());
    assert_eq!(model.inner().io_queues(), 1);
    assert!(admin.next_event().unwrap().is_none());
    model.change_ns(2, Some(ModelNs::new(2, 100, 12)));
    model.step();
    let event = admin.next_event().unwrap().unwrap();
    assert_eq!(event.info(), NoticeEvent::NS_ATTRIBUTE_CHANGED.0);
    assert_eq!(admin.changed(&mut time).unwrap(), Some(vec![2]));
    assert_eq!(usable(&mut admin, &mut time).len(), 2);
    assert_eq!(admin.health(&mut time).unwrap().ctemp.get(), 310);
    admin.shut_down(&mut time).unwrap();
}

#[test]
fn fewer_queues_than_asked_for_are_taken_as_they_come() {
    let model = Model::new();
    model.inner().faults.queues_max = Some(2);
    let (admin, _) = started(&model);
    assert_eq!(admin.io_queues(), 2);
}

#[test]
fn a_controller_that_never_gets_ready_is_given_up_after_its_own_limit() {
    let model = Model::new();
    let (mut admin, mut time) = found(&model);
    model.inner().faults.never_ready = true;
    let error = admin.start(1, &mut time).unwrap_err();
    assert!(matches!(error, AdminError::NotReady { what: "ready", ms: 2000 }), "{error}");
    assert!((2_000_000_000..2_100_000_000).contains(&time.now_ns()));
}

#[test]
fn a_controller_that_is_broken_gone_or_silent_ends_the_wait() {
    let model = Model::new();
    model.inner().faults.fatal = true;
    let (mut admin, mut time) = found(&model);
    assert!(matches!(admin.start(1, &mut time), Err(AdminError::Fatal)));
    let model = Model::new();
    let (mut admin, mut time) = found(&model);
    model.inner().faults.never_ready = true;
    time.gone_at_ns = 1_000_000_000;
    assert!(matches!(admin.start(1, &mut time), Err(AdminError::Gone)));
    assert!(time.now_ns() < 1_100_000_000);
    let (mut admin, mut time) = started(&Model::new());
    time.time = ModelTime::new(&Model::new());
    let error = admin.health(&mut time).unwrap_err();
    assert!(matches!(error, AdminError::Silent { ms: 5000, .. }), "{error}");
}

#[test]
fn a_controller_without_the_nvm_command_set_is_refused() {
    let model = Model::new();
    model.inner().cap = Cap(0).with_mqes0(7).with_css_none(true);
    let registers: Arc<dyn Registers> = Arc::<Model>::clone(&model);
    let error = Admin::new(registers, Translator::identity(), LIMIT_NS).unwrap_err();
    assert!(error.to_string().contains("NVM command set"), "{error}");
    model.inner().faults.gone = true;
    let registers: Arc<dyn Registers> = model;
    assert!(matches!(Admin::new(registers, Translator::identity(), LIMIT_NS), Err(AdminError::Gone)));
}

#[test]
fn formats_that_cannot_be_served_are_refused_with_the_reason() {
    let model = Model::new();
    {
        let mut inner = model.inner();
        let mut metadata = ModelNs::new(2, 10, 9);
        metadata.identify.lbaf[0].ms = 8.into();
        let mut protected = metadata.clone();
        protected.identify.dps = 1;
        let mut zoned = ModelNs::new(4, 10, 12);
        zoned.csi = 2;
        let odd = ModelNs::new(5, 10, 13);
        inner.namespaces.extend([(2, metadata), (3, protected), (4, zoned), (5, odd)]);
    }
    let (mut admin, mut time) = started(&model);
    let all = usable(&mut admin, &mut time);
    assert_eq!(all[0].1.as_ref().unwrap().blocks, 1024);
    let reasons: Vec<&Refusal> = all.iter().filter_map(|(_, ns)| ns.as_ref().err()).collect();
    assert_eq!(reasons[0], &Refusal::Metadata { bytes: 8 });
    assert_eq!(reasons[1], &Refusal::Protection { kind: 1 });
    assert_eq!(reasons[2], &Refusal::CommandSet(penstock_spec::nvme::opcode::Csi::ZONED));
    assert_eq!(reasons[3], &Refusal::BlockLength { bytes: 8192 });
}

#[test]
fn what_a_bdev_can_do_is_what_the_controller_offers() {
    let model = Model::new();
    let (mut admin, mut time) = started(&model);
    let ns = admin.namespace(1, &mut time).unwrap().unwrap();
    assert_eq!(ns.caps.io_blocks_max, 1024);
    assert!(ns.caps.write_cache && ns.caps.unmap_zeroes && ns.params.deallocates_zeroes);
    for op in [Op::Flush, Op::Unmap, Op::WriteZeroes, Op::Compare, Op::CompareAndWrite, Op::Copy] {
        assert!(ns.caps.has(op), "{op:?}");
    }
    {
        let mut inner = model.inner();
        inner.identify.mdts = 1;
        inner.identify.oncs = 0.into();
        inner.identify.vwc = 0;
        inner.namespaces.get_mut(&1).unwrap().identify.noiob = 8.into();
    }
    let (mut admin, mut time) = started(&model);
    let ns = admin.namespace(1, &mut time).unwrap().unwrap();
    assert_eq!((ns.caps.io_blocks_max, ns.caps.boundary_blocks, ns.caps.write_cache), (16, 8, false));
    for op in [Op::Flush, Op::Unmap, Op::WriteZeroes, Op::Compare, Op::CompareAndWrite, Op::Copy] {
        assert!(!ns.caps.has(op), "{op:?}");
    }
}
