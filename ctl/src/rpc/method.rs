//! The table of methods: the one place that says which there are. `rpc_get_methods`, docs/rpc.md and the tool's help
//! are made from it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::rpc::error::RpcError;
use crate::rpc::param::{self, Param, Params};

/// A future on the control thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What a method does to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Looks.
    Read,
    /// Changes something that is not part of the configuration.
    Act,
    /// Changes the configuration; one such method runs at a time, and the state file is written after it.
    Change,
}

/// When a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before and after the daemon's subsystems are initialised.
    Any,
    /// Only before.
    Startup,
    /// Only after.
    Runtime,
}

type Handler<C> = Box<dyn Fn(C, Value) -> LocalFuture<Result<Value, RpcError>>>;

/// One method.
pub struct Method<C> {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a sentence or two.
    pub doc: &'static str,
    /// What it does to the daemon.
    pub kind: Kind,
    /// When it may be called.
    pub phase: Phase,
    /// What it takes.
    pub params: Vec<Param>,
    /// What the words of its type's refusal say that it takes.
    pub fields: String,
    handler: Handler<C>,
}

impl<C> fmt::Debug for Method<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Method").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<C> Method<C> {
    /// Runs it.
    pub fn call(&self, context: C, params: Value) -> LocalFuture<Result<Value, RpcError>> {
        (self.handler)(context, params)
    }
}

/// All methods, by name. `C` is what the handlers work on.
#[derive(Debug)]
pub struct Table<C> {
    methods: BTreeMap<&'static str, Method<C>>,
    /// What is added from here on may be called then.
    phase: Phase,
}

impl<C: 'static> Default for Table<C> {
    fn default() -> Self {
        Self { methods: BTreeMap::new(), phase: Phase::Runtime }
    }
}

impl<C: 'static> Table<C> {
    /// What is added from here on may be called in `phase`.
    pub fn phase(&mut self, phase: Phase) -> &mut Self {
        self.phase = phase;
        self
    }

    /// Adds a method. Two of one name are a mistake in the program.
    pub fn add<P, F, Fut>(
        &mut self,
        name: &'static str,
        kind: Kind,
        doc: &'static str,
        handler: F,
    ) -> &mut Self
    where
        P: Params,
        F: Fn(C, P) -> Fut + 'static,
        Fut: Future<Output = Result<Value, RpcError>> + 'static,
    {
        self.add_described(name, kind, doc, P::list(), handler)
    }

    /// Adds a method whose parameters' type is another crate's, described by `params`.
    pub fn add_described<T, F, Fut>(
        &mut self,
        name: &'static str,
        kind: Kind,
        doc: &'static str,
        params: Vec<Param>,
        handler: F,
    ) -> &mut Self
    where
        T: DeserializeOwned,
        F: Fn(C, T) -> Fut + 'static,
        Fut: Future<Output = Result<Value, RpcError>> + 'static,
    {
        let known = params.clone();
        let handler = move |context: C, params: Value| -> LocalFuture<Result<Value, RpcError>> {
            match param::read_as::<T>(name, params, &known) {
                Ok(params) => Box::pin(handler(context, params)),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        };
        let fields = fields_of::<T>();
        let method =
            Method { name, doc, kind, phase: self.phase, params, fields, handler: Box::new(handler) };
        let before = self.methods.insert(name, method);
        assert!(before.is_none(), "the method {name} is there twice");
        self
    }

    /// The method of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Method<C>> {
        self.methods.get(name)
    }

    /// All methods, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Method<C>> {
        self.methods.values()
    }
}

/// What the type says when it is given a member that it does not know: the names of those that it does.
fn fields_of<T: DeserializeOwned>() -> String {
    let unknown = serde_json::json!({"an unknown name": null});
    serde_json::from_value::<T>(unknown).err().map(|error| error.to_string()).unwrap_or_default()
}

/// docs/rpc.md: all methods with their parameters.
#[must_use]
pub fn reference<C: 'static>(table: &Table<C>) -> String {
    let mut text = String::from(
        "# The control socket's methods\n\n\
         JSON-RPC 2.0 on a UNIX socket. Where SPDK has the method, names and parameters are SPDK's, so its `rpc.py`\n\
         (PyPI: `spdk`, command `spdk-rpc -s SOCKET METHOD …`) drives the daemon. `penstock rpc METHOD '{\"json\": …}'`\n\
         calls any of them. This page is made from the table that the daemon dispatches by: `penstock docs rpc`.\n\n\
         A parameter of type *unsupported* belongs to a feature of SPDK's that Penstock does not have: it is accepted\n\
         where it asks for nothing (0, false) and refused else.\n",
    );
    let mut group = "";
    for method in table.iter() {
        let prefix = method.name.split('_').next().unwrap_or_default();
        if prefix != group {
            group = prefix;
            text.push_str(&format!("\n## {group}\n"));
        }
        text.push_str(&format!("\n### {}\n\n{}\n", method.name, method.doc));
        if method.phase == Phase::Startup {
            text.push_str("Only before initialisation (`penstockd --wait-for-rpc`).\n");
        }
        if !method.params.is_empty() {
            text.push_str("\n| parameter | type | required | |\n| --- | --- | --- | --- |\n");
            rows(&mut text, "", &method.params);
        }
    }
    text
}

fn rows(text: &mut String, path: &str, params: &[Param]) {
    for param in params {
        let required = if param.required { "yes" } else { "" };
        text.push_str(&format!("| {path}{} | {} | {required} | {} |\n", param.name, param.kind, param.doc));
        rows(text, &format!("{path}{}.", param.name), &param.members);
    }
}
