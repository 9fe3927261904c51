//! The vdisk by iSCSI: one target, one portal group, any initiator; the disk is the one that NVMe/TCP exports.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::{BDEV, Client};

/// Tags of the portal group and the initiator group.
const TAG: u32 = 1;

/// An address as the methods take it.
fn portal(address: SocketAddr) -> Value {
    json!({"host": address.ip().to_string(), "port": address.port().to_string()})
}

/// Puts another address into a saved call that makes our portal group; whether it did.
pub(super) fn adopt_address(call: &mut Value, address: SocketAddr) -> bool {
    if call.get("method").and_then(Value::as_str) != Some("iscsi_create_portal_group") {
        return false;
    }
    let Some(params) = call.get_mut("params").filter(|params| params["tag"] == TAG) else { return false };
    let wanted = json!([portal(address)]);
    let changed = params["portals"] != wanted;
    params["portals"] = wanted;
    changed
}

/// Makes what is not there yet.
pub(super) fn set_up(client: &Client, iqn: &str, address: SocketAddr) -> Result<()> {
    let has = |list: &Value, member: &str, value: &Value| {
        list.as_array().into_iter().flatten().any(|one| one[member] == *value)
    };
    let portals = client.call("iscsi_get_portal_groups", &json!({}))?;
    if !has(&portals, "tag", &json!(TAG)) {
        let params = json!({"tag": TAG, "portals": [portal(address)]});
        client.call("iscsi_create_portal_group", &params)?;
    }
    let initiators = client.call("iscsi_get_initiator_groups", &json!({}))?;
    if !has(&initiators, "tag", &json!(TAG)) {
        let params = json!({"tag": TAG, "initiators": ["ANY"], "netmasks": ["ANY"]});
        client.call("iscsi_create_initiator_group", &params)?;
    }
    let targets = client.call("iscsi_get_target_nodes", &json!({}))?;
    if !has(&targets, "name", &json!(iqn)) {
        let params = json!({
            "name": iqn,
            "luns": [{"bdev_name": BDEV, "lun_id": 0}],
            "pg_ig_maps": [{"pg_tag": TAG, "ig_tag": TAG}],
        });
        client.call("iscsi_create_target_node", &params)?;
    }
    Ok(())
}

/// How initiators use it.
pub(super) fn how_to(iqn: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    let by_path = format!("/dev/disk/by-path/ip-{ip}:{port}-iscsi-{iqn}-lun-0");
    format!(
        "
the same disk by iSCSI: {iqn} LUN 0 on {address}

connect from Linux (as root, with open-iscsi):
  iscsiadm -m discovery -t sendtargets -p {address}
  iscsiadm -m node -T {iqn} -p {address} --login
  iscsiadm -m node -T {iqn} -p {address} --logout

as a disk of a QEMU guest (QEMU is the initiator itself; no root):
  qemu-system-x86_64 … -drive file=iscsi://{address}/{iqn}/0,format=raw,if=virtio,cache=none
  qemu-img info iscsi://{address}/{iqn}/0

measure it (writes to the disk):
  fio --name=lun0 --filename={by_path} \\
      --direct=1 --ioengine=io_uring --rw=randrw --rwmixread=70 \\
      --bs=4k --iodepth=32 --time_based --runtime=30 --group_reporting"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saved_portal_group_follows_the_flags() {
        let address = "127.0.0.1:3261".parse().unwrap();
        let mut call = json!({"method": "iscsi_create_portal_group",
            "params": {"tag": 1, "portals": [{"host": "127.0.0.1", "port": "3260"}], "wait": true}});
        assert!(adopt_address(&mut call, address));
        assert_eq!(call["params"]["portals"], json!([{"host": "127.0.0.1", "port": "3261"}]));
        assert!(!adopt_address(&mut call, address));
        assert!(!adopt_address(&mut json!({"method": "bdev_null_create"}), address));
        let text = how_to("iqn.2026-11.io.penstock:vdisk0", "[::1]:3260".parse().unwrap());
        assert!(text.contains("iscsi://[::1]:3260/iqn.2026-11.io.penstock:vdisk0/0"), "{text}");
    }
}
