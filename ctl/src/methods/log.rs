//! Methods about the logs.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::daemon::App;
use crate::daemon::logging::{FLAGS, Level};
use crate::params;
use crate::rpc::method::Phase;
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `log_set_level` and `log_set_print_level`.
    SetLevel {
        /// ERROR, WARNING, NOTICE, INFO or DEBUG. There are no records between NOTICE and INFO.
        level: String,
    }
}

params! {
    /// Of `log_set_flag` and `log_clear_flag`.
    Flag {
        /// bdev, nvmf, reactor, rpc, ctl or all.
        flag: String,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .phase(Phase::Any)
        .add("log_set_level", Kind::Act, "Sets what goes to the log: --log-file and log_get_records.", set_level)
        .add("log_get_level", Kind::Read, "What goes to the log.", get_level)
        .add("log_set_print_level", Kind::Act, "Sets what goes to standard error.", set_print_level)
        .add("log_get_print_level", Kind::Read, "What goes to standard error.", get_print_level)
        .add("log_set_flag", Kind::Act, "Logs a part's debug records whatever the levels say.", set_flag)
        .add("log_clear_flag", Kind::Act, "Ends what log_set_flag began.", clear_flag)
        .add("log_get_flags", Kind::Read, "All flags, and whether each is set.", get_flags)
        .add(
            "log_get_records",
            Kind::Read,
            "The last records of the log, oldest first, and how many were dropped because they came too fast.",
            get_records,
        )
        .phase(Phase::Runtime);
}

fn level(method: &str, params: &SetLevel) -> Result<Level, RpcError> {
    Level::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(&params.level)).ok_or_else(|| {
        let names = Level::ALL.map(Level::name).join(", ");
        RpcError::invalid_params(format!("{method}: level {:?} is none of {names}", params.level))
    })
}

async fn set_level(app: Rc<App>, params: SetLevel) -> Result<Value, RpcError> {
    app.log.set_log_level(level("log_set_level", &params)?);
    Ok(Value::Bool(true))
}

async fn get_level(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(json!(app.log.log_level().name()))
}

async fn set_print_level(app: Rc<App>, params: SetLevel) -> Result<Value, RpcError> {
    app.log.set_print_level(level("log_set_print_level", &params)?);
    Ok(Value::Bool(true))
}

async fn get_print_level(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(json!(app.log.print_level().name()))
}

fn switch(app: &App, method: &str, flag: &str, on: bool) -> Result<Value, RpcError> {
    if app.log.set_flag(flag, on) {
        return Ok(Value::Bool(true));
    }
    let names = FLAGS.map(|(name, _)| name).join(", ");
    Err(RpcError::invalid_params(format!("{method}: there is no flag {flag:?}; there are {names}, all")))
}

async fn set_flag(app: Rc<App>, params: Flag) -> Result<Value, RpcError> {
    switch(&app, "log_set_flag", &params.flag, true)
}

async fn clear_flag(app: Rc<App>, params: Flag) -> Result<Value, RpcError> {
    switch(&app, "log_clear_flag", &params.flag, false)
}

async fn get_flags(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let flags: Map<String, Value> = app.log.flags().map(|(name, on)| (name.to_owned(), json!(on))).collect();
    Ok(Value::Object(flags))
}

async fn get_records(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(json!({"records": app.log.records(), "dropped": app.log.dropped()}))
}
