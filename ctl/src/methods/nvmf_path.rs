//! Methods about paths to NVMe-oF subsystems: ANA states of listeners and groups of namespaces.

use std::rc::Rc;

use penstock_nvmf::config::DuplicateHost;
use serde_json::Value;

use crate::daemon::App;
use crate::methods::nvmf::{Address, check_target};
use crate::params;
use crate::rpc::param::ParamType;
use crate::rpc::{Kind, RpcError, Table};

impl ParamType for DuplicateHost {
    fn kind() -> String {
        "string".to_owned()
    }
}

params! {
    /// Of `nvmf_subsystem_listener_set_ana_state`.
    SetAnaState {
        /// The subsystem.
        nqn: String,
        /// The listener's address.
        listen_address: Address,
        /// optimized, non_optimized, inaccessible, persistent_loss or change.
        ana_state: String,
        /// Only this ANA group. Default: all.
        anagrpid: Option<u32>,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_set_ns_ana_group`.
    SetNsAnaGroup {
        /// The subsystem.
        nqn: String,
        /// The namespace ID.
        nsid: u32,
        /// The ANA group.
        anagrpid: u32,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "nvmf_subsystem_listener_set_ana_state",
            Kind::Change,
            "Changes the state of ANA groups for hosts that come by a listener, and tells them. When it answers, no command \
             that came by a path that is closed now is under way.",
            set_ana_state,
        )
        .add(
            "nvmf_subsystem_set_ns_ana_group",
            Kind::Change,
            "Moves a namespace to another ANA group. Hosts are told.",
            set_ns_ana_group,
        );
}

async fn set_ana_state(app: Rc<App>, params: SetAnaState) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let address = params.listen_address.into();
    app.target.set_ana_state(&params.nqn, &address, &params.ana_state, params.anagrpid).await?;
    Ok(Value::Bool(true))
}

async fn set_ns_ana_group(app: Rc<App>, params: SetNsAnaGroup) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.set_ns_ana_group(&params.nqn, params.nsid, params.anagrpid).await?;
    Ok(Value::Bool(true))
}
