//! Methods about the reactors' trace rings: on, off, and what they hold.

use std::rc::Rc;

use penstock_reactor::Cx;
use penstock_reactor::trace::{RECORDS, TracePoint};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

/// The one group: all trace points are switched together.
const GROUP: &str = "reactor";

/// All trace points.
const POINTS: [TracePoint; 8] = [
    TracePoint::BdevSubmit,
    TracePoint::BdevComplete,
    TracePoint::ConnOpen,
    TracePoint::ConnClose,
    TracePoint::Command,
    TracePoint::Response,
    TracePoint::Stall,
    TracePoint::Sleep,
];

params! {
    /// Of `trace_enable_tpoint_group` and `trace_disable_tpoint_group`.
    Group {
        /// reactor or all: the trace points are switched together.
        name: String,
    }
}

params! {
    /// Of `penstock_trace_dump`.
    Dump {
        /// Which reactor.
        reactor: u32,
        /// How many of the newest records at most. Default: 1000.
        max: Option<u32>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add("trace_enable_tpoint_group", Kind::Act, "Begins to record trace points on all reactors.", enable)
        .add(
            "trace_disable_tpoint_group",
            Kind::Act,
            "Ends the recording of trace points on all reactors.",
            disable,
        )
        .add(
            "trace_get_tpoint_group_mask",
            Kind::Read,
            "The group of trace points, and whether it is recorded.",
            get_mask,
        )
        .add(
            "penstock_trace_dump",
            Kind::Read,
            "The newest records of a reactor's trace ring, oldest first.",
            dump,
        );
}

async fn switch(app: &App, method: &str, group: &str, on: bool) -> Result<Value, RpcError> {
    if group != GROUP && group != "all" {
        let message = format!("{method}: there is no trace group {group:?}; there are {GROUP}, all");
        return Err(RpcError::invalid_params(message));
    }
    for reactor in &app.reactors {
        let set = reactor.call(move |cx: &Cx| cx.with_trace(|trace| trace.set_enabled(on)));
        set.await.map_err(|error| RpcError::internal(error.to_string()))?;
    }
    Ok(Value::Bool(true))
}

async fn enable(app: Rc<App>, params: Group) -> Result<Value, RpcError> {
    switch(&app, "trace_enable_tpoint_group", &params.name, true).await
}

async fn disable(app: Rc<App>, params: Group) -> Result<Value, RpcError> {
    switch(&app, "trace_disable_tpoint_group", &params.name, false).await
}

async fn get_mask(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let mut enabled = false;
    for reactor in &app.reactors {
        let on = reactor.call(|cx: &Cx| cx.with_trace(|trace| trace.is_enabled()));
        enabled |= on.await.map_err(|error| RpcError::internal(error.to_string()))?;
    }
    let point = |(id, point): (usize, &TracePoint)| json!({"name": format!("{point:?}"), "tpoint_id": id, "enabled": enabled});
    let points: Value = POINTS.iter().enumerate().map(point).collect();
    let mask = if enabled { "0x1" } else { "0x0" };
    Ok(json!({"tpoint_group_mask": mask, GROUP: {"enabled": enabled, "mask": "0x1", "tpoints": points}}))
}

async fn dump(app: Rc<App>, params: Dump) -> Result<Value, RpcError> {
    let Some(reactor) = app.reactors.iter().find(|reactor| reactor.id().0 == params.reactor) else {
        return Err(RpcError::not_found(format!("there is no reactor {}", params.reactor)));
    };
    let records = reactor.call(|cx: &Cx| cx.with_trace(|trace| trace.dump())).await;
    let records = records.map_err(|error| RpcError::internal(error.to_string()))?;
    let max = usize::try_from(params.max.unwrap_or(1000)).unwrap_or(RECORDS);
    let newest = records.iter().skip(records.len().saturating_sub(max));
    Ok(newest
        .map(|record| {
            json!({
                "tick": record.tick.as_ns(),
                "point": format!("{:?}", record.point),
                "object": record.object,
                "arg": record.arg,
                "arg2": record.arg2,
            })
        })
        .collect())
}
