//! Methods about the iSCSI target, with SPDK's names and parameters; the target does the work.

mod params;

use std::rc::Rc;

use penstock_iscsi::target::{
    AuthChoice, NewLun, NewPortalGroup, NewSecret, NewTargetNode, Portal, TargetError,
};
use serde_json::{Value, json};

use self::params::*;
use crate::daemon::App;
use crate::methods::histogram;
use crate::rpc::error::{INTERNAL_ERROR, INVALID_PARAMS, INVALID_STATE, bdev_code, errno};
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

/// Commands of one session under way, where nobody says how many.
const QUEUE_DEPTH_DEFAULT: u16 = 128;

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    add_settings(table);
    add_groups(table);
    add_nodes(table);
}

fn add_settings(table: &mut Table<Rc<App>>) {
    use Kind::{Change, Read};
    table
        .add(
            "iscsi_set_options",
            Change,
            "Sets options of the iSCSI target, for sessions that begin from now on.",
            set_options,
        )
        .add("iscsi_get_options", Read, "The options of the iSCSI target.", get_options)
        .add(
            "iscsi_set_discovery_auth",
            Change,
            "Says who has to prove what to discover targets.",
            set_discovery_auth,
        )
        .add(
            "iscsi_create_auth_group",
            Change,
            "Makes an authentication group: secrets for CHAP.",
            create_auth_group,
        )
        .add("iscsi_delete_auth_group", Change, "Deletes an authentication group.", delete_auth_group)
        .add("iscsi_auth_group_add_secret", Change, "Adds a secret to an authentication group.", add_secret)
        .add(
            "iscsi_auth_group_remove_secret",
            Change,
            "Takes a secret out of an authentication group; sessions stay.",
            remove_secret,
        )
        .add(
            "iscsi_get_auth_groups",
            Read,
            "The authentication groups with their users; save_config has the secrets.",
            get_auth_groups,
        )
        .add("iscsi_get_connections", Read, "All connections of the iSCSI target.", get_connections)
        .add("iscsi_get_stats", Read, "Connections by state, and what each reactor has counted.", get_stats);
}

fn add_groups(table: &mut Table<Rc<App>>) {
    use Kind::{Change, Read};
    table
        .add(
            "iscsi_create_portal_group",
            Change,
            "Makes a portal group and listens on its portals.",
            create_portal_group,
        )
        .add(
            "iscsi_start_portal_group",
            Change,
            "Listens on the portals of a portal group that was made to wait.",
            start_portal_group,
        )
        .add(
            "iscsi_delete_portal_group",
            Change,
            "Deletes a portal group and its maps; its connections end.",
            delete_portal_group,
        )
        .add(
            "iscsi_portal_group_set_auth",
            Change,
            "Says who has to prove what to discover targets by a portal group.",
            portal_group_set_auth,
        )
        .add("iscsi_get_portal_groups", Read, "The portal groups.", get_portal_groups)
        .add(
            "iscsi_create_initiator_group",
            Change,
            "Makes an initiator group: who may come from where.",
            create_initiator_group,
        )
        .add(
            "iscsi_delete_initiator_group",
            Change,
            "Deletes an initiator group and its maps; sessions that they let in end.",
            delete_initiator_group,
        )
        .add(
            "iscsi_initiator_group_add_initiators",
            Change,
            "Adds names and networks to an initiator group.",
            add_initiators,
        )
        .add(
            "iscsi_initiator_group_remove_initiators",
            Change,
            "Takes names and networks out of an initiator group; sessions that they let in end.",
            remove_initiators,
        )
        .add("iscsi_get_initiator_groups", Read, "The initiator groups.", get_initiator_groups);
}

fn add_nodes(table: &mut Table<Rc<App>>) {
    use Kind::{Act, Change, Read};
    table
        .add("iscsi_create_target_node", Change, "Makes a target node.", create_target_node)
        .add(
            "iscsi_delete_target_node",
            Change,
            "Deletes a target node; its sessions end.",
            delete_target_node,
        )
        .add("iscsi_get_target_nodes", Read, "The target nodes.", get_target_nodes)
        .add(
            "iscsi_target_node_add_lun",
            Change,
            "Adds a bdev as a LUN; answers its number. Initiators are told.",
            add_lun,
        )
        .add(
            "iscsi_target_node_remove_lun",
            Change,
            "Takes a LUN out of a target node. Initiators are told.",
            remove_lun,
        )
        .add(
            "iscsi_target_node_set_lun_initiators",
            Change,
            "Shows a LUN to the initiators of some groups only. Initiators are told.",
            set_lun_initiators,
        )
        .add(
            "iscsi_target_node_add_pg_ig_maps",
            Change,
            "Lets initiators come to a target node by portal groups.",
            add_maps,
        )
        .add(
            "iscsi_target_node_remove_pg_ig_maps",
            Change,
            "Ends that initiators may come to a target node; their sessions end.",
            remove_maps,
        )
        .add(
            "iscsi_target_node_set_auth",
            Change,
            "Says who has to prove what to log in to a target node.",
            target_node_set_auth,
        )
        .add(
            "iscsi_target_node_set_redirect",
            Change,
            "Sends logins at a public portal group elsewhere, or takes them again.",
            set_redirect,
        )
        .add(
            "iscsi_target_node_request_logout",
            Act,
            "Asks initiators to log out: they come again where they are sent. Those that do not are cut off.",
            request_logout,
        )
        .add(
            "iscsi_enable_histogram",
            Change,
            "Begins the histogram of how long a target node's commands take anew, or ends it.",
            enable_histogram,
        )
        .add(
            "iscsi_get_histogram",
            Read,
            "How long a target node's commands have taken since iscsi_enable_histogram; as bdev_get_histogram tells it.",
            get_histogram,
        );
}

impl From<TargetError> for RpcError {
    fn from(error: TargetError) -> Self {
        let code = match &error {
            TargetError::Bdev { source, .. } => bdev_code(source),
            TargetError::Missing { .. } => -i64::from(errno::NODEV),
            TargetError::Exists { .. } => -i64::from(errno::EXIST),
            TargetError::InUse { .. } => -i64::from(errno::BUSY),
            TargetError::Name { .. } | TargetError::Invalid { .. } => INVALID_PARAMS,
            TargetError::Full { .. } => -i64::from(errno::NOSPC),
            TargetError::TimedOut { .. } => -i64::from(errno::TIMEDOUT),
            _ => INTERNAL_ERROR,
        };
        Self::of(code, &error)
    }
}

fn choice(
    disable_chap: Option<bool>,
    require_chap: Option<bool>,
    mutual_chap: Option<bool>,
    chap_group: Option<u32>,
) -> AuthChoice {
    AuthChoice {
        disable_chap: disable_chap.unwrap_or(false),
        require_chap: require_chap.unwrap_or(false),
        mutual_chap: mutual_chap.unwrap_or(false),
        chap_group: chap_group.unwrap_or(0),
    }
}

async fn set_options(app: Rc<App>, params: SetOptions) -> Result<Value, RpcError> {
    let mut options = app.iscsi.options();
    let iscsi = &mut options.iscsi;
    iscsi.nop_timeout = params.nop_timeout.unwrap_or(iscsi.nop_timeout);
    iscsi.nop_in_interval = params.nop_in_interval.unwrap_or(iscsi.nop_in_interval);
    iscsi.max_sessions = params.max_sessions.unwrap_or(iscsi.max_sessions);
    iscsi.max_connections_per_session =
        params.max_connections_per_session.unwrap_or(iscsi.max_connections_per_session);
    iscsi.max_queue_depth = params.max_queue_depth.unwrap_or(iscsi.max_queue_depth);
    iscsi.default_time2wait = params.default_time2wait.unwrap_or(iscsi.default_time2wait);
    iscsi.default_time2retain = params.default_time2retain.unwrap_or(iscsi.default_time2retain);
    iscsi.first_burst_length = params.first_burst_length.unwrap_or(iscsi.first_burst_length);
    iscsi.max_burst_length = params.max_burst_length.unwrap_or(iscsi.max_burst_length);
    iscsi.max_recv_data_segment_length =
        params.max_recv_data_segment_length.unwrap_or(iscsi.max_recv_data_segment_length);
    iscsi.immediate_data = params.immediate_data.unwrap_or(iscsi.immediate_data);
    iscsi.max_r2t_per_connection = params.max_r2t_per_connection.unwrap_or(iscsi.max_r2t_per_connection);
    iscsi.login_timeout = params.login_timeout.unwrap_or(iscsi.login_timeout);
    options.node_base = params.node_base.unwrap_or(options.node_base);
    let auth = [params.disable_chap, params.require_chap, params.mutual_chap];
    if auth.iter().any(Option::is_some) || params.chap_group.is_some() {
        let [disable, require, mutual] = auth;
        app.iscsi.set_discovery_auth(choice(disable, require, mutual, params.chap_group)).await?;
    }
    app.iscsi.set_options(options).await?;
    Ok(Value::Bool(true))
}

async fn get_options(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_options())
}

async fn set_discovery_auth(app: Rc<App>, params: SetDiscoveryAuth) -> Result<Value, RpcError> {
    let choice = choice(params.disable_chap, params.require_chap, params.mutual_chap, params.chap_group);
    app.iscsi.set_discovery_auth(choice).await?;
    Ok(Value::Bool(true))
}

async fn create_auth_group(app: Rc<App>, params: CreateAuthGroup) -> Result<Value, RpcError> {
    let secret = |one: SecretParam| NewSecret {
        user: one.user,
        secret: one.secret,
        muser: one.muser,
        msecret: one.msecret,
    };
    let secrets: Vec<NewSecret> = params.secrets.unwrap_or_default().into_iter().map(secret).collect();
    app.iscsi.create_auth_group(params.tag, &secrets)?;
    Ok(Value::Bool(true))
}

async fn delete_auth_group(app: Rc<App>, params: OfTag) -> Result<Value, RpcError> {
    app.iscsi.delete_auth_group(params.tag)?;
    Ok(Value::Bool(true))
}

async fn add_secret(app: Rc<App>, params: AddSecret) -> Result<Value, RpcError> {
    let secret =
        NewSecret { user: params.user, secret: params.secret, muser: params.muser, msecret: params.msecret };
    app.iscsi.auth_group_add_secret(params.tag, &secret).await?;
    Ok(Value::Bool(true))
}

async fn remove_secret(app: Rc<App>, params: RemoveSecret) -> Result<Value, RpcError> {
    app.iscsi.auth_group_remove_secret(params.tag, &params.user).await?;
    Ok(Value::Bool(true))
}

async fn get_auth_groups(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_auth_groups())
}

async fn get_connections(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_connections().await?)
}

async fn get_stats(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_stats().await?)
}

async fn create_portal_group(app: Rc<App>, params: CreatePortalGroup) -> Result<Value, RpcError> {
    let portal = |one: PortalParam| Portal { host: one.host, port: one.port };
    let new = NewPortalGroup {
        tag: params.tag,
        portals: params.portals.into_iter().map(portal).collect(),
        private: params.private.unwrap_or(false),
        wait: params.wait.unwrap_or(false),
    };
    app.iscsi.create_portal_group(&new).await?;
    Ok(Value::Bool(true))
}

async fn start_portal_group(app: Rc<App>, params: OfTag) -> Result<Value, RpcError> {
    app.iscsi.start_portal_group(params.tag).await?;
    Ok(Value::Bool(true))
}

async fn delete_portal_group(app: Rc<App>, params: OfTag) -> Result<Value, RpcError> {
    app.iscsi.delete_portal_group(params.tag).await?;
    Ok(Value::Bool(true))
}

async fn portal_group_set_auth(app: Rc<App>, params: PortalGroupSetAuth) -> Result<Value, RpcError> {
    let choice = choice(params.disable_chap, params.require_chap, params.mutual_chap, params.chap_group);
    app.iscsi.portal_group_set_auth(params.tag, choice).await?;
    Ok(Value::Bool(true))
}

async fn get_portal_groups(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_portal_groups())
}

async fn create_initiator_group(app: Rc<App>, params: CreateInitiatorGroup) -> Result<Value, RpcError> {
    app.iscsi.create_initiator_group(params.tag, &params.initiators, &params.netmasks)?;
    Ok(Value::Bool(true))
}

async fn delete_initiator_group(app: Rc<App>, params: OfTag) -> Result<Value, RpcError> {
    app.iscsi.delete_initiator_group(params.tag).await?;
    Ok(Value::Bool(true))
}

async fn add_initiators(app: Rc<App>, params: ChangeInitiators) -> Result<Value, RpcError> {
    let (names, masks) = (params.initiators.unwrap_or_default(), params.netmasks.unwrap_or_default());
    app.iscsi.add_initiators(params.tag, &names, &masks).await?;
    Ok(Value::Bool(true))
}

async fn remove_initiators(app: Rc<App>, params: ChangeInitiators) -> Result<Value, RpcError> {
    let (names, masks) = (params.initiators.unwrap_or_default(), params.netmasks.unwrap_or_default());
    app.iscsi.remove_initiators(params.tag, &names, &masks).await?;
    Ok(Value::Bool(true))
}

async fn get_initiator_groups(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_initiator_groups())
}

fn maps(params: &[MapParam]) -> Vec<(u32, u32)> {
    params.iter().map(|map| (map.pg_tag, map.ig_tag)).collect()
}

async fn create_target_node(app: Rc<App>, params: CreateTargetNode) -> Result<Value, RpcError> {
    let lun = |one: LunParam| NewLun {
        bdev_name: one.bdev_name,
        lun_id: Some(one.lun_id),
        ig_tags: one.ig_tags.unwrap_or_default(),
    };
    let new = NewTargetNode {
        name: params.name,
        alias_name: params.alias_name.unwrap_or_default(),
        luns: params.luns.into_iter().map(lun).collect(),
        pg_ig_maps: maps(&params.pg_ig_maps),
        queue_depth: params.queue_depth.unwrap_or(QUEUE_DEPTH_DEFAULT),
        auth: choice(params.disable_chap, params.require_chap, params.mutual_chap, params.chap_group),
        header_digest: params.header_digest.unwrap_or(false),
        data_digest: params.data_digest.unwrap_or(false),
    };
    app.iscsi.create_target_node(&new).await?;
    Ok(Value::Bool(true))
}

async fn delete_target_node(app: Rc<App>, params: OfTarget) -> Result<Value, RpcError> {
    app.iscsi.delete_target_node(&params.name).await?;
    Ok(Value::Bool(true))
}

async fn get_target_nodes(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.iscsi.get_target_nodes())
}

async fn add_lun(app: Rc<App>, params: AddLun) -> Result<Value, RpcError> {
    let lun_id = match params.lun_id {
        None | Some(-1) => None,
        Some(lun) => Some(u16::try_from(lun).map_err(|_| {
            RpcError::invalid_params(format!("lun_id is {lun}; it must be 0 to 16383, or -1 for a free one"))
        })?),
    };
    let new = NewLun { bdev_name: params.bdev_name, lun_id, ig_tags: params.ig_tags.unwrap_or_default() };
    Ok(json!(app.iscsi.add_lun(&params.name, &new).await?))
}

async fn remove_lun(app: Rc<App>, params: RemoveLun) -> Result<Value, RpcError> {
    app.iscsi.remove_lun(&params.name, params.lun_id).await?;
    Ok(Value::Bool(true))
}

async fn set_lun_initiators(app: Rc<App>, params: SetLunInitiators) -> Result<Value, RpcError> {
    app.iscsi.set_lun_initiators(&params.name, params.lun_id, &params.ig_tags).await?;
    Ok(Value::Bool(true))
}

async fn add_maps(app: Rc<App>, params: ChangeMaps) -> Result<Value, RpcError> {
    app.iscsi.add_pg_ig_maps(&params.name, &maps(&params.pg_ig_maps)).await?;
    Ok(Value::Bool(true))
}

async fn remove_maps(app: Rc<App>, params: ChangeMaps) -> Result<Value, RpcError> {
    app.iscsi.remove_pg_ig_maps(&params.name, &maps(&params.pg_ig_maps)).await?;
    Ok(Value::Bool(true))
}

async fn target_node_set_auth(app: Rc<App>, params: TargetSetAuth) -> Result<Value, RpcError> {
    let choice = choice(params.disable_chap, params.require_chap, params.mutual_chap, params.chap_group);
    app.iscsi.target_node_set_auth(&params.name, choice).await?;
    Ok(Value::Bool(true))
}

async fn set_redirect(app: Rc<App>, params: SetRedirect) -> Result<Value, RpcError> {
    let (host, port) = (params.redirect_host.as_deref(), params.redirect_port.as_deref());
    app.iscsi.set_redirect(&params.name, params.pg_tag, host, port).await?;
    Ok(Value::Bool(true))
}

async fn enable_histogram(app: Rc<App>, params: EnableHistogram) -> Result<Value, RpcError> {
    app.iscsi.enable_histogram(&params.name, params.enable).await?;
    Ok(Value::Bool(true))
}

async fn get_histogram(app: Rc<App>, params: GetHistogram) -> Result<Value, RpcError> {
    match app.iscsi.histogram(&params.name)? {
        Some(latencies) => Ok(histogram::spdk(&latencies)),
        None => {
            let message = format!(
                "the histogram of target node {} is not enabled; call iscsi_enable_histogram first",
                params.name
            );
            Err(RpcError::new(INVALID_STATE, message))
        }
    }
}

async fn request_logout(app: Rc<App>, params: RequestLogout) -> Result<Value, RpcError> {
    app.iscsi.request_logout(&params.name, params.pg_tag).await?;
    Ok(Value::Bool(true))
}
