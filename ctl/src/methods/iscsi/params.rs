//! What the methods about the iSCSI target take, named as SPDK names it.

use crate::params;
use crate::rpc::param::Off;

params! {
    /// Of `iscsi_set_options`. What is left out stays as it is.
    SetOptions {
        /// The first part of the names of targets that are given without one. Default: iqn.2026-11.io.penstock.
        node_base: Option<String>,
        /// Seconds that an initiator has to answer a NOP-In. Default: 60.
        nop_timeout: Option<u16>,
        /// Seconds of silence after which an initiator is asked by a NOP-In; 0: never. Default: 30.
        nop_in_interval: Option<u16>,
        /// No CHAP for discovery. Default: false.
        disable_chap: Option<bool>,
        /// Nothing but CHAP for discovery. Default: false.
        require_chap: Option<bool>,
        /// CHAP in both directions for discovery. Default: false.
        mutual_chap: Option<bool>,
        /// The authentication group of discovery. Default: 0, none.
        chap_group: Option<u32>,
        /// Sessions of the daemon at most. Default: 4096.
        max_sessions: Option<u32>,
        /// Commands of one session under way at most. Default: 128.
        max_queue_depth: Option<u16>,
        /// Connections of one session at most: 1 to 64. Default: 2.
        max_connections_per_session: Option<u16>,
        /// DefaultTime2Wait in seconds. Default: 2.
        default_time2wait: Option<u16>,
        /// DefaultTime2Retain in seconds. Default: 0.
        default_time2retain: Option<u16>,
        /// FirstBurstLength in bytes. Default: 65536.
        first_burst_length: Option<u32>,
        /// MaxBurstLength in bytes. Default: 1048576.
        max_burst_length: Option<u32>,
        /// MaxRecvDataSegmentLength in bytes. Default: 262144.
        max_recv_data_segment_length: Option<u32>,
        /// Whether data may come in commands. Default: true.
        immediate_data: Option<bool>,
        /// MaxOutstandingR2T. Default: 4.
        max_r2t_per_connection: Option<u16>,
        /// Seconds that a login may take. Default: 15.
        login_timeout: Option<u16>,
        /// There is error recovery level 0 only.
        error_recovery_level: Option<Off>,
        /// A second session of one name takes the first one's place.
        allow_duplicated_isid: Option<Off>,
        /// Secrets come by iscsi_create_auth_group.
        auth_file: Option<Off>,
        /// Reads are bounded by the buffers of the reactors.
        max_large_datain_per_connection: Option<Off>,
        /// Buffers come from the reactors' own caches.
        pdu_pool_size: Option<Off>,
        /// Buffers come from the reactors' own caches.
        immediate_data_pool_size: Option<Off>,
        /// Buffers come from the reactors' own caches.
        data_out_pool_size: Option<Off>,
    }
}

params! {
    /// Of `iscsi_set_discovery_auth`.
    SetDiscoveryAuth {
        /// No CHAP. Default: false.
        disable_chap: Option<bool>,
        /// Nothing but CHAP. Default: false.
        require_chap: Option<bool>,
        /// CHAP in both directions; with require_chap. Default: false.
        mutual_chap: Option<bool>,
        /// The authentication group. Default: 0, none.
        chap_group: Option<u32>,
    }
}

params! {
    /// A secret.
    SecretParam {
        /// Name of the initiator.
        user: String,
        /// Its secret: 12 to 255 bytes.
        secret: String,
        /// Name of the target, for mutual CHAP. Default: none.
        muser: Option<String>,
        /// Its secret: 12 to 255 bytes, no initiator's. Default: none.
        msecret: Option<String>,
    }
}

params! {
    /// Of `iscsi_create_auth_group`.
    CreateAuthGroup {
        /// Its tag: 1 or more.
        tag: u32,
        /// Its secrets. Default: none.
        secrets: Option<Vec<SecretParam>>,
    }
}

params! {
    /// Of methods that only name an authentication group, a portal group or an initiator group.
    OfTag {
        /// Its tag.
        tag: u32,
    }
}

params! {
    /// Of `iscsi_auth_group_add_secret`.
    AddSecret {
        /// The authentication group.
        tag: u32,
        /// Name of the initiator.
        user: String,
        /// Its secret: 12 to 255 bytes.
        secret: String,
        /// Name of the target, for mutual CHAP. Default: none.
        muser: Option<String>,
        /// Its secret: 12 to 255 bytes, no initiator's. Default: none.
        msecret: Option<String>,
    }
}

params! {
    /// Of `iscsi_auth_group_remove_secret`.
    RemoveSecret {
        /// The authentication group.
        tag: u32,
        /// Name of the initiator.
        user: String,
    }
}

params! {
    /// An address of a portal group.
    PortalParam {
        /// IP address; an IPv6 address may stand in brackets. 0.0.0.0 and :: stand for all.
        host: String,
        /// Port; 0 picks a free one. Default: 3260.
        port: Option<String>,
    }
}

params! {
    /// Of `iscsi_create_portal_group`.
    CreatePortalGroup {
        /// Its tag: 1 to 65535, the TargetPortalGroupTag.
        tag: u32,
        /// Where it is reached.
        portals: Vec<PortalParam>,
        /// Whether discovery does not tell of it: initiators come there by redirection. Default: false.
        private: Option<bool>,
        /// Whether it listens only after iscsi_start_portal_group. Default: false.
        wait: Option<bool>,
    }
}

params! {
    /// Of `iscsi_portal_group_set_auth`.
    PortalGroupSetAuth {
        /// The portal group.
        tag: u32,
        /// No CHAP. Default: false.
        disable_chap: Option<bool>,
        /// Nothing but CHAP. Default: false.
        require_chap: Option<bool>,
        /// CHAP in both directions; with require_chap. Default: false.
        mutual_chap: Option<bool>,
        /// The authentication group. Default: 0, none.
        chap_group: Option<u32>,
    }
}

params! {
    /// Of `iscsi_create_initiator_group`.
    CreateInitiatorGroup {
        /// Its tag: 1 or more.
        tag: u32,
        /// Names of initiators, or ANY; a name after ! may not come. The first that fits counts.
        initiators: Vec<String>,
        /// Networks like 192.0.2.0/24 or [2001:db8::]/32, or ANY.
        netmasks: Vec<String>,
    }
}

params! {
    /// Of methods that change an initiator group.
    ChangeInitiators {
        /// The initiator group.
        tag: u32,
        /// Names of initiators. Default: none.
        initiators: Option<Vec<String>>,
        /// Networks. Default: none.
        netmasks: Option<Vec<String>>,
    }
}

params! {
    /// A LUN.
    LunParam {
        /// The bdev: name, alias or UUID.
        bdev_name: String,
        /// Its number: 0 to 16383.
        lun_id: u16,
        /// Only initiators of these groups see it. Default: all do.
        ig_tags: Option<Vec<u32>>,
    }
}

params! {
    /// Initiators of a group may come by a portal group.
    MapParam {
        /// The portal group.
        pg_tag: u32,
        /// The initiator group.
        ig_tag: u32,
    }
}

params! {
    /// Of `iscsi_create_target_node`.
    CreateTargetNode {
        /// Its name; without iqn., eui. or naa. it goes after node_base.
        name: String,
        /// TargetAlias. Default: none.
        alias_name: Option<String>,
        /// Its LUNs.
        luns: Vec<LunParam>,
        /// Who may come by which portals.
        pg_ig_maps: Vec<MapParam>,
        /// Commands of one session under way at most: 1 to 1024; max_queue_depth holds too. Default: 128.
        queue_depth: Option<u16>,
        /// The authentication group. Default: 0, none.
        chap_group: Option<u32>,
        /// No CHAP. Default: false.
        disable_chap: Option<bool>,
        /// Nothing but CHAP. Default: false.
        require_chap: Option<bool>,
        /// CHAP in both directions; with require_chap. Default: false.
        mutual_chap: Option<bool>,
        /// Refuse sessions without header digests. Default: false.
        header_digest: Option<bool>,
        /// Refuse sessions without data digests. Default: false.
        data_digest: Option<bool>,
    }
}

params! {
    /// Of methods that only name a target node.
    OfTarget {
        /// The target node.
        name: String,
    }
}

params! {
    /// Of `iscsi_target_node_add_lun`.
    AddLun {
        /// The target node.
        name: String,
        /// The bdev: name, alias or UUID.
        bdev_name: String,
        /// Its number: 0 to 16383; -1: the lowest that is free. Default: -1.
        lun_id: Option<i32>,
        /// Only initiators of these groups see it. Default: all do.
        ig_tags: Option<Vec<u32>>,
    }
}

params! {
    /// Of `iscsi_target_node_remove_lun`.
    RemoveLun {
        /// The target node.
        name: String,
        /// The LUN.
        lun_id: u16,
    }
}

params! {
    /// Of `iscsi_target_node_set_lun_initiators`.
    SetLunInitiators {
        /// The target node.
        name: String,
        /// The LUN.
        lun_id: u16,
        /// Only initiators of these groups see it; an empty list: all do.
        ig_tags: Vec<u32>,
    }
}

params! {
    /// Of methods about the maps of a target node.
    ChangeMaps {
        /// The target node.
        name: String,
        /// Who may come by which portals.
        pg_ig_maps: Vec<MapParam>,
    }
}

params! {
    /// Of `iscsi_target_node_set_auth`.
    TargetSetAuth {
        /// The target node.
        name: String,
        /// The authentication group. Default: 0, none.
        chap_group: Option<u32>,
        /// No CHAP. Default: false.
        disable_chap: Option<bool>,
        /// Nothing but CHAP. Default: false.
        require_chap: Option<bool>,
        /// CHAP in both directions; with require_chap. Default: false.
        mutual_chap: Option<bool>,
    }
}

params! {
    /// Of `iscsi_target_node_set_redirect`.
    SetRedirect {
        /// The target node.
        name: String,
        /// The public portal group whose logins are sent elsewhere.
        pg_tag: u32,
        /// IP address that they are sent to. Default: they are taken again.
        redirect_host: Option<String>,
        /// Port that they are sent to.
        redirect_port: Option<String>,
    }
}

params! {
    /// Of `iscsi_enable_histogram`.
    EnableHistogram {
        /// The target node.
        name: String,
        /// Whether to begin (anew) or to end.
        enable: bool,
    }
}

params! {
    /// Of `iscsi_get_histogram`.
    GetHistogram {
        /// The target node.
        name: String,
    }
}

params! {
    /// Of `iscsi_target_node_request_logout`.
    RequestLogout {
        /// The target node.
        name: String,
        /// Only who came by this portal group. Default: all.
        pg_tag: Option<u32>,
    }
}
