//! Hugepages per NUMA node.

use std::str::FromStr;

use crate::Plan;
use crate::act::Step;
use crate::root::{Root, SetupError};

const SIZES: [(&str, u64); 2] = [("2M", 2048), ("1G", 1_048_576)];
/// Pages of one size on one node at most: 4 TiB of 2 MiB.
const COUNT_MAX: u64 = 1 << 21;

/// So many pages of a size, on one node or on each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    node: Option<u32>,
    size_kib: u64,
    count: u64,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not [NODE:]SIZE=COUNT, as 2M=512 or 0:1G=4");
        let (place, count) = text.split_once('=').ok_or_else(bad)?;
        let (node, size) = match place.split_once(':') {
            Some((node, size)) => (Some(node.parse().map_err(|_| bad())?), size),
            None => (None, place),
        };
        let size_kib = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(size)).ok_or_else(bad)?.1;
        let count: u64 = count.parse().map_err(|_| bad())?;
        if count > COUNT_MAX {
            return Err(format!("{count} pages are more than {COUNT_MAX}"));
        }
        Ok(Self { node, size_kib, count })
    }
}

/// The machine's NUMA nodes.
pub(crate) fn nodes(root: &Root) -> Vec<u32> {
    let names = root.list("/sys/devices/system/node");
    names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect()
}

/// The file that says how many pages there are.
pub(crate) fn file(node: u32, size_kib: u64) -> String {
    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{size_kib}kB/nr_hugepages")
}

pub(crate) fn plan(root: &Root, wish: &Wish, plan: &mut Plan) -> Result<(), SetupError> {
    let all = nodes(root);
    let chosen = match wish.node {
        Some(node) if !all.contains(&node) => {
            return Err(SetupError::Wish(format!("there is no NUMA node {node}; there are {all:?}")));
        }
        Some(node) => vec![node],
        None => all,
    };
    for node in chosen {
        let path = file(node, wish.size_kib);
        let Some(before) = root.number(&path) else {
            plan.refused
                .push(format!("node {node} has no pages of {} KiB ({path} is missing)", wish.size_kib));
            continue;
        };
        let wanted_kib = wish.count.saturating_sub(before) * wish.size_kib;
        let free_kib = free_kib(root, node);
        if free_kib.is_some_and(|free| wanted_kib > free / 10 * 9) {
            let free = free_kib.unwrap_or(0) / 1024;
            plan.refused.push(format!(
                "{} more pages of {} KiB on node {node} are {} MiB, and {free} MiB are free there: a tenth must stay",
                wish.count - before, wish.size_kib, wanted_kib / 1024
            ));
        } else if before != wish.count {
            plan.steps.push(Step::write(path, &wish.count.to_string(), &before.to_string()));
        }
    }
    Ok(())
}

fn free_kib(root: &Root, node: u32) -> Option<u64> {
    let text = root.text(&format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let line = text.lines().find(|line| line.contains("MemFree:"))?;
    line.split_whitespace().rev().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::tree;

    const NODE0: &str = "sys/devices/system/node/node0";

    fn machine(name: &str) -> Root {
        let (two, one, info) = (
            format!("{NODE0}/hugepages/hugepages-2048kB/nr_hugepages"),
            "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages".to_owned(),
            format!("{NODE0}/meminfo"),
        );
        tree(
            name,
            &[(&two, "0\n"), (&one, "8\n"), (&info, "Node 0 MemTotal: 9 kB\nNode 0 MemFree: 4194304 kB\n")],
        )
    }

    #[test]
    fn a_wish_is_for_one_node_or_for_all() {
        let root = machine("pages");
        let mut made = Plan::default();
        plan(&root, &"2M=8".parse().unwrap(), &mut made).unwrap();
        assert_eq!(made.steps.len(), 1, "node 1 has them already");
        plan(&root, &"1:2m=9".parse().unwrap(), &mut made).unwrap();
        assert_eq!((made.steps.len(), made.refused.len()), (2, 0));
        assert!(plan(&root, &"7:2M=1".parse().unwrap(), &mut made).is_err());
        plan(&root, &"0:1G=1".parse().unwrap(), &mut made).unwrap();
        assert!(made.refused[0].contains("no pages of 1048576 KiB"), "{:?}", made.refused);
    }

    #[test]
    fn more_than_there_is_memory_for_is_refused() {
        let root = machine("toomany");
        let mut made = Plan::default();
        plan(&root, &"0:2M=4000".parse().unwrap(), &mut made).unwrap();
        assert!(made.steps.is_empty() && made.refused[0].contains("4096 MiB are free"), "{:?}", made.refused);
    }

    #[test]
    fn what_is_no_wish_is_refused() {
        for text in ["", "2M", "3M=1", "2M=x", "x:2M=1", "2M=-1", "2M=99999999999"] {
            assert!(text.parse::<Wish>().is_err(), "{text}");
        }
    }
}
