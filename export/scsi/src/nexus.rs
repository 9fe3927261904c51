//! An I_T nexus on its reactor: which logical units it sees, what it has yet to be told, what it has left to fetch.

use std::sync::Arc;

use penstock_bdev::reservation::{Access, HostId, RegistrantId, Standing};
use penstock_spec::scsi::sense::Asc;

use crate::command::CopyResults;
use crate::config::LuId;
use crate::lu::{Audience, EVENTS_MAX, LuView};
use crate::seal::Seal;

/// Unit attention conditions that wait at one nexus for one logical unit at most.
const ATTENTIONS_MAX: usize = 16;

/// LUNs of one target at most (flat addressing has 14 bits; a report of so many takes 32 KiB).
pub const LUNS_MAX: usize = 4096;

/// A logical unit as seen from a nexus.
#[derive(Debug)]
pub(crate) struct NexusLu {
    pub(crate) lun: u16,
    pub(crate) view: Arc<LuView>,
    attentions: Vec<Asc>,
    next_event: u64,
    seen_blocks: u64,
    standing: Standing,
}

impl NexusLu {
    fn new(lun: u16, view: Arc<LuView>, id: &RegistrantId) -> Self {
        let mut lu = Self {
            lun,
            attentions: vec![Asc::POWER_ON_OR_RESET],
            next_event: view.next_event,
            seen_blocks: view.config.descriptor.shared().blocks(),
            standing: Standing::default(),
            view,
        };
        lu.standing = lu.view.reservations.standing(id);
        lu
    }

    fn raise(&mut self, asc: Asc) {
        if asc == Asc::POWER_ON_OR_RESET {
            // It says everything.
            self.attentions.clear();
        }
        if !self.attentions.contains(&asc) && self.attentions.len() < ATTENTIONS_MAX {
            self.attentions.push(asc);
        }
    }

    fn apply(&mut self, view: &Arc<LuView>, id: &RegistrantId) {
        if view.version < self.view.version {
            return;
        }
        self.view = Arc::clone(view);
        self.standing = view.reservations.standing(id);
        let missed = view.next_event.saturating_sub(self.next_event);
        if usize::try_from(missed).is_ok_and(|missed| missed > EVENTS_MAX) {
            self.raise(Asc::POWER_ON_OR_RESET);
        } else {
            let first = self.next_event;
            for event in view.events.iter().filter(|event| event.number >= first) {
                let for_us = match &event.audience {
                    Audience::All => true,
                    Audience::AllBut(other) => other != id,
                    Audience::Only(other) => other == id,
                };
                if for_us {
                    self.raise(event.asc);
                }
            }
        }
        self.next_event = view.next_event;
    }

    /// Looks whether the disk has another length by now.
    #[inline]
    pub(crate) fn notice_capacity(&mut self) {
        let blocks = self.view.config.descriptor.shared().blocks();
        if blocks != self.seen_blocks {
            self.seen_blocks = blocks;
            self.raise(Asc::CAPACITY_CHANGED);
        }
    }

    /// The oldest unit attention condition, which is cleared by being told.
    #[inline]
    pub(crate) fn take_attention(&mut self) -> Option<Asc> {
        if self.attentions.is_empty() { None } else { Some(self.attentions.remove(0)) }
    }

    /// Clears one condition.
    pub(crate) fn forget(&mut self, asc: Asc) {
        self.attentions.retain(|other| *other != asc);
    }

    /// Whether reservations let this nexus do that.
    #[inline]
    pub(crate) fn may(&self, id: &RegistrantId, access: Access) -> bool {
        let reserved = self.view.reserved_by.as_ref().is_some_and(|holder| holder != id);
        !reserved && self.view.reservations.allows(self.standing, access)
    }
}

/// One I_T nexus (an iSCSI session at a target port). Lives on the reactor of its session.
#[derive(Debug)]
pub struct Nexus {
    id: RegistrantId,
    lus: Vec<NexusLu>,
    pub(crate) copies: CopyResults,
    pub(crate) seal: Seal,
}

impl Nexus {
    /// The nexus of the initiator port with that TransportID and the target port with that relative identifier. It sees
    /// no logical unit yet. `seal` marks the tokens of this process.
    #[must_use]
    pub fn new(transport_id: &[u8], port: u16, seal: Seal) -> Self {
        let id = RegistrantId { host: HostId::Scsi(transport_id.into()), port };
        Self { id, lus: Vec::new(), copies: CopyResults::default(), seal }
    }

    /// Its name among registrants.
    #[must_use]
    pub fn id(&self) -> &RegistrantId {
        &self.id
    }

    /// Makes the logical units in `luns` its own, by LUN. Those that are new to it report a unit attention; the others
    /// keep their state and report that the list has changed. LUNs beyond [`LUNS_MAX`] and above 16383 are left out. Whether
    /// the list is another than before.
    pub fn apply_luns(&mut self, luns: &[(u16, Arc<LuView>)]) -> bool {
        let mut old = std::mem::take(&mut self.lus);
        let first = old.is_empty();
        let mut changed = false;
        for (lun, view) in luns.iter().filter(|(lun, _)| *lun < 1 << 14).take(LUNS_MAX) {
            let known = old.iter().position(|lu| lu.lun == *lun && lu.view.config.id == view.config.id);
            let lu = if let Some(at) = known {
                let mut lu = old.swap_remove(at);
                lu.apply(view, &self.id);
                lu
            } else {
                changed = true;
                NexusLu::new(*lun, Arc::clone(view), &self.id)
            };
            self.lus.push(lu);
        }
        self.lus.sort_by_key(|lu| lu.lun);
        self.lus.dedup_by_key(|lu| lu.lun);
        let changed = (changed || !old.is_empty()) && !first;
        if changed {
            self.lus.iter_mut().for_each(|lu| lu.raise(Asc::LUNS_CHANGED));
        }
        changed
    }

    /// Takes a new view of a logical unit, wherever it sees it.
    pub fn apply_lu(&mut self, view: &Arc<LuView>) {
        for lu in self.lus.iter_mut().filter(|lu| lu.view.config.id == view.config.id) {
            lu.apply(view, &self.id);
        }
    }

    /// Another nexus has cleared commands of this one (SAM-5, 7.5).
    pub fn commands_cleared(&mut self, lu: LuId) {
        for lu in self.lus.iter_mut().filter(|known| known.view.config.id == lu) {
            lu.raise(Asc::COMMANDS_CLEARED);
        }
    }

    /// The LUNs that it sees, in order.
    pub fn luns(&self) -> impl Iterator<Item = (u16, &Arc<LuView>)> {
        self.lus.iter().map(|lu| (lu.lun, &lu.view))
    }

    #[inline]
    pub(crate) fn lu(&self, lun: u16) -> Option<&NexusLu> {
        let at = self.lus.binary_search_by_key(&lun, |lu| lu.lun).ok()?;
        self.lus.get(at)
    }

    #[inline]
    pub(crate) fn lu_mut(&mut self, lun: u16) -> Option<&mut NexusLu> {
        let at = self.lus.binary_search_by_key(&lun, |lu| lu.lun).ok()?;
        self.lus.get_mut(at)
    }

    /// Its own name and one of its logical units.
    #[inline]
    pub(crate) fn split(&mut self, lun: u16) -> Option<(&RegistrantId, &mut NexusLu)> {
        let at = self.lus.binary_search_by_key(&lun, |lu| lu.lun).ok()?;
        Some((&self.id, self.lus.get_mut(at)?))
    }

    pub(crate) fn lu_by_id(&self, id: LuId) -> Option<&NexusLu> {
        self.lus.iter().find(|lu| lu.view.config.id == id)
    }

    /// Clears a condition at every logical unit.
    pub(crate) fn forget_everywhere(&mut self, asc: Asc) {
        self.lus.iter_mut().for_each(|lu| lu.forget(asc));
    }
}

/// The LUN in the eight bytes of the wire (SAM-5 4.7): peripheral device or flat space addressing on one level.
#[inline]
#[must_use]
pub fn lun_of(wire: u64) -> Option<u16> {
    let first = u16::try_from(wire >> 48).ok()?;
    let rest_is_zero = wire << 16 == 0;
    match first >> 14 {
        0b00 if first & 0x3f00 == 0 && rest_is_zero => Some(first),
        0b01 if rest_is_zero => Some(first & 0x3fff),
        _ => None,
    }
}

/// The eight bytes of a LUN.
#[must_use]
pub fn lun_to_wire(lun: u16) -> u64 {
    let first = if lun < 256 { lun } else { 0x4000 | (lun & 0x3fff) };
    u64::from(first) << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luns_survive_the_wire() {
        for lun in [0, 1, 255, 256, 16_383] {
            assert_eq!(lun_of(lun_to_wire(lun)), Some(lun));
        }
        assert_eq!(lun_to_wire(1), 0x0001_0000_0000_0000);
        assert_eq!(lun_to_wire(256), 0x4100_0000_0000_0000);
        // Flat space addressing of a small LUN is as good.
        assert_eq!(lun_of(0x4001_0000_0000_0000), Some(1));
        for bad in [1, 0xc101_0000_0000_0000, 0x0101_0000_0000_0000, 0x8001_0000_0000_0000] {
            assert_eq!(lun_of(bad), None, "{bad:#x}");
        }
    }
}
