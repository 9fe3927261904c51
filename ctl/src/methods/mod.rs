//! The methods of the control socket, a module for each part of the daemon.

pub mod bdev;
pub mod config;
pub mod create;
pub mod filter;
pub mod framework;
pub mod histogram;
pub mod iostat;
pub mod iscsi;
pub mod keyring;
pub mod log;
pub mod nvme;
pub mod nvmf;
pub mod nvmf_discovery;
pub mod nvmf_path;
pub mod pool;
pub mod pool_background;
pub mod reactor;
pub mod trace;
pub mod transfer;
pub mod vdisk;
pub mod vhost;

use std::rc::Rc;

use crate::daemon::App;
use crate::rpc::Table;

/// All methods.
#[must_use]
pub fn table() -> Table<Rc<App>> {
    let mut table = Table::default();
    framework::add(&mut table);
    log::add(&mut table);
    config::add(&mut table);
    reactor::add(&mut table);
    trace::add(&mut table);
    bdev::add(&mut table);
    iostat::add(&mut table);
    histogram::add(&mut table);
    create::add(&mut table);
    filter::add(&mut table);
    nvme::add(&mut table);
    pool::add(&mut table);
    pool_background::add(&mut table);
    vdisk::add(&mut table);
    transfer::add(&mut table);
    keyring::add(&mut table);
    nvmf::add(&mut table);
    nvmf_discovery::add(&mut table);
    nvmf_path::add(&mut table);
    iscsi::add(&mut table);
    vhost::add(&mut table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::method::reference;

    #[test]
    fn every_description_has_the_names_that_its_type_reads() {
        for method in table().iter() {
            let mut expected: Vec<&str> = method.fields.split('`').skip(3).step_by(2).collect();
            let mut described: Vec<&str> = method.params.iter().map(|param| param.name).collect();
            expected.sort_unstable();
            described.sort_unstable();
            assert_eq!(described, expected, "{}: {}", method.name, method.fields);
        }
    }

    #[test]
    fn every_method_and_parameter_says_what_it_is() {
        for method in table().iter() {
            assert!(method.doc.ends_with('.'), "{} has no sentence", method.name);
            for param in &method.params {
                assert!(!param.doc.is_empty(), "{}.{} says nothing", method.name, param.name);
            }
        }
    }

    #[test]
    fn the_page_of_methods_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rpc.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let text = reference(&table());
        assert!(written == text, "docs/rpc.md is old: write `penstock docs rpc` into it");
    }
}
