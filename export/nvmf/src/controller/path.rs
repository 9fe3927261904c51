//! What a controller tells of its path: ANA in Identify, and commands that its path refuses.

use penstock_spec::nvme::Status;
use penstock_spec::nvme::identify::controller::MultipathCapabilities;
use penstock_spec::nvme::identify::{IdentifyController, IdentifyNamespace, IdentifyNamespaceIndependent};
use penstock_spec::nvme::log::ana::AnaState;
use zerocopy::little_endian::{U16, U32, U64};

use super::Controller;
use super::cross_reset::CROSS_RESETS_MAX;
use super::effects::Kind;
use crate::ana;
use crate::config::NamespaceConfig;

impl Controller {
    pub(super) fn kind(&self) -> Kind {
        match (self.is_discovery(), self.params.subsystem.ana_reporting) {
            (true, _) => Kind::Discovery,
            (false, false) => Kind::Io,
            (false, true) => Kind::IoAna,
        }
    }

    /// The path related status of a command on a namespace, where the path refuses it.
    pub(super) fn path_open(&self, nsid: u32) -> Result<(), Status> {
        self.params.subsystem.path_open(self.params.portid, nsid)
    }

    /// CQT, CCRL, CIU and CIRN; with ANA also CMIC, ANATT, ANACAP, ANAGRPMAX and NANAGRPID.
    pub(super) fn tell_paths(&self, data: &mut IdentifyController) {
        let subsystem = &self.params.subsystem;
        data.cqt_ms = U16::new(subsystem.command_quiesce_ms);
        data.ccrl = CROSS_RESETS_MAX;
        data.ciu = self.ciu;
        data.cirn = U64::new(self.cirn);
        if !subsystem.ana_reporting {
            return;
        }
        data.cmic = MultipathCapabilities(data.cmic).with_anars(true).0;
        data.anatt_s = ana::ANATT_S;
        data.anacap = ana::capabilities().0;
        data.anagrpmax = U32::new(subsystem.max_ana_groups);
        data.nanagrpid = U32::new(subsystem.max_ana_groups);
    }

    /// ANAGRPID; and the utilization, which a path without access to the namespace does not know (Base 8.1.1.6).
    pub(super) fn on_path(
        &self,
        namespace: &NamespaceConfig,
        mut data: IdentifyNamespace,
    ) -> IdentifyNamespace {
        let (subsystem, group) = (&self.params.subsystem, namespace.anagrpid);
        if subsystem.ana_reporting {
            data.anagrpid = U32::new(group);
            let state = subsystem.ana_state(self.params.portid, group);
            if matches!(state, AnaState::INACCESSIBLE | AnaState::PERSISTENT_LOSS) {
                data.nuse = U64::new(0);
                data.nvmcap = [0; 16];
            }
        }
        data
    }

    /// ANAGRPID.
    pub(super) fn on_path_independent(
        &self,
        namespace: &NamespaceConfig,
        mut data: IdentifyNamespaceIndependent,
    ) -> IdentifyNamespaceIndependent {
        if self.params.subsystem.ana_reporting {
            data.anagrpid = U32::new(namespace.anagrpid);
        }
        data
    }
}
