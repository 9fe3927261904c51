//! What the target tells of itself, in SPDK's shapes.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::nodes::Node;
use super::params::{netmask_text, rule_text};
use super::portals::PortalGroupState;
use super::{AuthChoice, Options, State, Target, TargetError};
use crate::auth::Secret;
use crate::config::InitiatorGroup;
use crate::group::{GroupCell, GroupStats};

impl Target {
    /// `iscsi_get_options`.
    #[must_use]
    pub fn get_options(&self) -> Value {
        let state = self.0.state.borrow();
        let mut value = options(&state.options);
        merge(&mut value, auth(state.discovery));
        merge(
            &mut value,
            json!({ "error_recovery_level": 0,
            "allow_duplicated_isid": false }),
        );
        value
    }

    /// `iscsi_get_portal_groups`.
    #[must_use]
    pub fn get_portal_groups(&self) -> Value {
        let state = self.0.state.borrow();
        let tell = |(tag, group): (&u16, &PortalGroupState)| {
            let mut value = portal_group(*tag, group);
            merge(&mut value, json!({ "started": group.started }));
            if let Some(choice) = group.auth {
                merge(&mut value, auth(choice));
            }
            value
        };
        state.portal_groups.iter().map(tell).collect()
    }

    /// `iscsi_get_initiator_groups`.
    #[must_use]
    pub fn get_initiator_groups(&self) -> Value {
        self.0.state.borrow().initiator_groups.values().map(|group| initiator_group(group)).collect()
    }

    /// `iscsi_get_auth_groups`: names, no secrets.
    #[must_use]
    pub fn get_auth_groups(&self) -> Value {
        let state = self.0.state.borrow();
        let user = |secret: &Secret| match &secret.mutual {
            None => json!({ "user": secret.user }),
            Some((muser, _)) => json!({ "user": secret.user, "muser": muser }),
        };
        let tell = |(tag, group): (&u32, &Vec<Secret>)| json!({ "tag": tag, "secrets": group.iter().map(user).collect::<Vec<_>>() });
        state.auth_groups.iter().map(tell).collect()
    }

    /// `iscsi_get_target_nodes`.
    #[must_use]
    pub fn get_target_nodes(&self) -> Value {
        let state = self.0.state.borrow();
        let tell = |(name, node): (&penstock_spec::iscsi::IscsiName, &Node)| {
            let mut value = target_node(name.as_str(), node);
            let redirect = |(pg, addr): (&u16, &SocketAddr)| redirect(*pg, *addr);
            let redirects: Vec<Value> = node.redirects.iter().map(redirect).collect();
            merge(&mut value, json!({ "redirects": redirects }));
            value
        };
        state.nodes.iter().map(tell).collect()
    }

    /// `iscsi_get_connections`.
    ///
    /// # Errors
    /// What a reactor says.
    pub async fn get_connections(&self) -> Result<Value, TargetError> {
        let answers = self.0.reactors.tell(|cx| GroupCell::of(cx).map(|cell| cell.connection_list()));
        let lists = self.all(answers, "list connections").await?;
        let mut all = Vec::new();
        for (handle, list) in self.0.reactors.iter().zip(lists) {
            for one in list.into_iter().flatten() {
                let phase = if one.full_feature { "full_feature_phase" } else { "login" };
                all.push(json!({
                    "id": one.id,
                    "cid": one.cid,
                    "tsih": one.tsih,
                    "state": if one.exiting { "exiting" } else { "running" },
                    "login_phase": phase,
                    "initiator_addr": one.initiator_addr.ip().to_string(),
                    "initiator_name": one.initiator.map(|name| name.to_string()),
                    "target_addr": one.target_addr.ip().to_string(),
                    "target_node_name": one.target.map(|name| name.to_string()),
                    "portal_group_tag": one.tpgt,
                    "thread_name": format!("reactor_{}", handle.id()),
                }));
            }
        }
        Ok(Value::Array(all))
    }

    /// `iscsi_get_stats`: SPDK's counts of connections, and what each reactor has counted.
    ///
    /// # Errors
    /// What a reactor says.
    pub async fn get_stats(&self) -> Result<Value, TargetError> {
        let answers = self.0.reactors.tell(|cx| GroupCell::of(cx).map(|cell| cell.stats()));
        let stats = self.all(answers, "read the statistics of the iSCSI target").await?;
        let sum = |of: fn(&GroupStats) -> u64| stats.iter().flatten().map(of).sum::<u64>();
        let groups = self.0.reactors.iter().zip(&stats).filter_map(|(handle, stats)| {
            let stats = (*stats)?;
            Some(json!({
                "name": format!("reactor_{}", handle.id()),
                "connections": stats.connections,
                "half_open": stats.half_open,
                "accepted": stats.accepted,
                "refused": stats.refused,
                "logins": stats.logins,
                "login_failures": stats.login_failures,
                "auth_failures": stats.auth_failures,
                "redirects": stats.redirects,
                "timed_out": stats.timed_out,
            }))
        });
        Ok(json!({
            "invalid": 0,
            "running": sum(|stats| stats.connections - stats.exiting),
            "exiting": sum(|stats| stats.exiting),
            "exited": sum(|stats| stats.exited),
            "sessions": self.0.common.sessions.list().len(),
            "poll_groups": groups.collect::<Vec<_>>(),
        }))
    }

    /// The calls that make this configuration again, in order: method and parameters, for `save_config`. They hold the
    /// secrets. Portal groups listen when everything is there: an initiator that finds no target may not come again.
    #[must_use]
    pub fn config_calls(&self) -> Vec<(&'static str, Value)> {
        let state = self.0.state.borrow();
        let mut calls = Vec::new();
        if state.options != Options::default() {
            calls.push(("iscsi_set_options", options(&state.options)));
        }
        for (tag, group) in &state.auth_groups {
            let secrets: Vec<Value> = group.iter().map(secret).collect();
            calls.push(("iscsi_create_auth_group", json!({ "tag": tag, "secrets": secrets })));
        }
        if state.discovery != AuthChoice::default() {
            calls.push(("iscsi_set_discovery_auth", auth(state.discovery)));
        }
        for (tag, group) in &state.portal_groups {
            let mut params = portal_group(*tag, group);
            merge(&mut params, json!({ "wait": true }));
            calls.push(("iscsi_create_portal_group", params));
            if let Some(choice) = group.auth {
                let mut params = auth(choice);
                merge(&mut params, json!({ "tag": tag }));
                calls.push(("iscsi_portal_group_set_auth", params));
            }
        }
        let groups = state.initiator_groups.values();
        calls.extend(groups.map(|group| ("iscsi_create_initiator_group", initiator_group(group))));
        for (name, node) in &state.nodes {
            calls.push(("iscsi_create_target_node", target_node(name.as_str(), node)));
            for (pg, addr) in &node.redirects {
                let mut params = redirect(*pg, *addr);
                merge(&mut params, json!({ "name": name.as_str() }));
                calls.push(("iscsi_target_node_set_redirect", params));
            }
            if node.latencies.is_some() {
                let params = json!({ "name": name.as_str(), "enable": true });
                calls.push(("iscsi_enable_histogram", params));
            }
        }
        calls.extend(start_calls(&state));
        calls
    }
}

fn start_calls(state: &State) -> impl Iterator<Item = (&'static str, Value)> + '_ {
    let started = state.portal_groups.iter().filter(|(_, group)| group.started);
    started.map(|(tag, _)| ("iscsi_start_portal_group", json!({ "tag": tag })))
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(members), Value::Object(more)) = (value.as_object_mut(), more) {
        members.extend(more);
    }
}

fn options(options: &Options) -> Value {
    let o = &options.iscsi;
    json!({
        "node_base": options.node_base,
        "max_sessions": o.max_sessions,
        "max_connections_per_session": o.max_connections_per_session,
        "max_queue_depth": o.max_queue_depth,
        "default_time2wait": o.default_time2wait,
        "default_time2retain": o.default_time2retain,
        "first_burst_length": o.first_burst_length,
        "max_burst_length": o.max_burst_length,
        "max_recv_data_segment_length": o.max_recv_data_segment_length,
        "immediate_data": o.immediate_data,
        "nop_timeout": o.nop_timeout,
        "nop_in_interval": o.nop_in_interval,
        "login_timeout": o.login_timeout,
        "max_r2t_per_connection": o.max_r2t_per_connection,
    })
}

fn auth(choice: AuthChoice) -> Value {
    json!({
        "disable_chap": choice.disable_chap,
        "require_chap": choice.require_chap,
        "mutual_chap": choice.mutual_chap,
        "chap_group": choice.chap_group,
    })
}

fn secret(secret: &Secret) -> Value {
    let mut value = json!({ "user": secret.user, "secret": secret.secret.reveal() });
    if let Some((muser, msecret)) = &secret.mutual {
        merge(&mut value, json!({ "muser": muser, "msecret": msecret.reveal() }));
    }
    value
}

fn portal_group(tag: u16, group: &PortalGroupState) -> Value {
    let portal =
        |addr: &SocketAddr| json!({ "host": addr.ip().to_string(), "port": addr.port().to_string() });
    let portals: Vec<Value> = group.portals.iter().map(portal).collect();
    json!({ "tag": tag, "portals": portals, "private": group.private })
}

fn initiator_group(group: &InitiatorGroup) -> Value {
    let netmask = |mask: &Option<crate::config::Netmask>| netmask_text(mask.as_ref());
    json!({
        "tag": group.tag,
        "initiators": group.initiators.iter().map(rule_text).collect::<Vec<_>>(),
        "netmasks": group.netmasks.iter().map(netmask).collect::<Vec<_>>(),
    })
}

fn redirect(pg: u16, addr: SocketAddr) -> Value {
    json!({
        "pg_tag": pg,
        "redirect_host": addr.ip().to_string(),
        "redirect_port": addr.port().to_string(),
    })
}

fn target_node(name: &str, node: &Node) -> Value {
    let maps: Vec<Value> = node.maps.iter().map(|(pg, ig)| json!({ "pg_tag": pg, "ig_tag": ig })).collect();
    let luns = node.luns.iter().map(|(lun, config)| {
        let mut value = json!({ "bdev_name": config.bdev.name(), "lun_id": lun });
        if !config.seen_by.is_empty() {
            merge(&mut value, json!({ "ig_tags": config.seen_by }));
        }
        value
    });
    let mut value = json!({
        "name": name,
        "alias_name": node.alias,
        "pg_ig_maps": maps,
        "luns": luns.collect::<Vec<_>>(),
        "queue_depth": node.queue_depth,
        "header_digest": node.header_digest,
        "data_digest": node.data_digest,
    });
    merge(&mut value, auth(node.auth));
    value
}
