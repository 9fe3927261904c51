//! Methods about keys in files, with SPDK's names and parameters. No method tells a key, only its name and its file.

use std::path::Path;
use std::rc::Rc;

use penstock_nvmf::auth::{HostKeys, KeyNames};
use penstock_security::chap::Keys;
use penstock_security::keyring::KeyringError;
use penstock_security::psk::ConfiguredPsk;
use penstock_security::secret::{Secret, SecretError};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::error::{INTERNAL_ERROR, INVALID_PARAMS, errno};
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `keyring_file_add_key`.
    AddKey {
        /// The key's name.
        name: String,
        /// Absolute path of the file; it must be the daemon's user's, with mode 0600 or less.
        path: String,
    }
}

params! {
    /// Of `keyring_file_remove_key`.
    RemoveKey {
        /// The key's name.
        name: String,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "keyring_file_add_key",
            Kind::Change,
            "Gives a key in a file a name. The file is read where the name is used.",
            add_key,
        )
        .add(
            "keyring_file_remove_key",
            Kind::Change,
            "Forgets a key's name. What uses the key already goes on.",
            remove_key,
        )
        .add("keyring_get_keys", Kind::Read, "Names of keys and their files.", get_keys);
}

impl From<KeyringError> for RpcError {
    fn from(error: KeyringError) -> Self {
        let code = match &error {
            KeyringError::Present { .. } => -i64::from(errno::EXIST),
            KeyringError::Missing { .. } => -i64::from(errno::NODEV),
            KeyringError::Full => -i64::from(errno::NOSPC),
            KeyringError::Relative { .. } | KeyringError::Mode { .. } | KeyringError::Owner { .. } => {
                -i64::from(errno::PERM)
            }
            KeyringError::Io { source, .. } => -i64::from(source.raw_os_error().unwrap_or(errno::IO)),
            KeyringError::Name { .. } | KeyringError::Contents { .. } => INVALID_PARAMS,
            _ => INTERNAL_ERROR,
        };
        Self::of(code, &error)
    }
}

async fn add_key(app: Rc<App>, params: AddKey) -> Result<Value, RpcError> {
    app.keyring.borrow_mut().add(&params.name, Path::new(&params.path))?;
    Ok(Value::Bool(true))
}

async fn remove_key(app: Rc<App>, params: RemoveKey) -> Result<Value, RpcError> {
    app.keyring.borrow_mut().remove(&params.name)?;
    Ok(Value::Bool(true))
}

async fn get_keys(app: Rc<App>, _params: crate::rpc::param::Nothing) -> Result<Value, RpcError> {
    let keyring = app.keyring.borrow();
    let key = |(name, path): (&str, &Path)| json!({ "name": name, "module": "keyring_file", "removed": false, "path": path });
    Ok(keyring.iter().map(key).collect())
}

/// The keys of those names, as they are now.
pub(crate) fn host_keys(app: &App, names: KeyNames) -> Result<HostKeys, RpcError> {
    let keyring = app.keyring.borrow();
    let load = |name: &String| -> Result<Secret, RpcError> {
        Secret::parse(&keyring.load(name)?).map_err(|error| unusable(name, "DH-HMAC-CHAP", &error))
    };
    let psk = names.psk.as_ref().map(|name| {
        let text = keyring.load(name)?;
        ConfiguredPsk::parse(&text).map_err(|error| unusable(name, "TLS", &error))
    });
    let controller = names.dhchap_ctrlr_key.as_ref().map(load).transpose()?;
    let chap = match (names.dhchap_key.as_ref().map(load).transpose()?, controller) {
        (Some(host), controller) => Some(Keys { host, controller }),
        (None, None) => None,
        (None, Some(_)) => {
            let message = "dhchap_ctrlr_key goes with dhchap_key: a controller proves itself only to a host that has \
                           done so";
            return Err(RpcError::invalid_params(message));
        }
    };
    Ok(HostKeys { psk: psk.transpose()?, chap, names })
}

fn unusable(name: &str, what: &str, error: &SecretError) -> RpcError {
    RpcError::invalid_params(format!("key {name} is no key for {what}: {error}"))
}
