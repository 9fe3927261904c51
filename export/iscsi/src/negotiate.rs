//! Operational keys (RFC 7143, section 13): what is offered, what comes out.

use penstock_spec::iscsi::text::{Pair, boolean, number, yes_no};

use crate::config::IscsiOptions;

/// Lengths of bursts and segments: 512 to 2**24 - 1 bytes.
const LENGTH_MIN: u32 = 512;
const LENGTH_MAX: u32 = (1 << 24) - 1;

/// What a session's parties have agreed on. Before that, the standard's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operational {
    /// The connection joins a session, whose keys were negotiated by the leading one.
    pub(crate) joins: bool,
    /// MaxConnections.
    pub connections_max: u16,
    /// HeaderDigest is CRC32C.
    pub header_digest: bool,
    /// DataDigest is CRC32C.
    pub data_digest: bool,
    /// InitialR2T: no unsolicited Data-Out.
    pub initial_r2t: bool,
    /// ImmediateData: data in commands.
    pub immediate_data: bool,
    /// FirstBurstLength: unsolicited data of a command at most, in bytes.
    pub first_burst: u32,
    /// MaxBurstLength: data of one sequence at most, in bytes.
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength that the initiator declared, in bytes.
    pub data_to_initiator: u32,
    /// MaxRecvDataSegmentLength that we declare, in bytes.
    pub data_to_target: u32,
    /// MaxOutstandingR2T.
    pub r2t_max: u16,
    /// DefaultTime2Wait, in seconds.
    pub time2wait: u16,
    /// DefaultTime2Retain, in seconds.
    pub time2retain: u16,
}

impl Default for Operational {
    fn default() -> Self {
        Self {
            joins: false,
            connections_max: 1,
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            first_burst: 65_536,
            max_burst: 262_144,
            data_to_initiator: 8192,
            data_to_target: 8192,
            r2t_max: 1,
            time2wait: 2,
            time2retain: 20,
        }
    }
}

/// What is to be said to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Say {
    /// `key=value`.
    Value(String),
    /// Nothing: the key declares something.
    Nothing,
    /// `key=Reject`: the value is none that the key has.
    Reject,
    /// `key=Irrelevant`.
    Irrelevant,
    /// `key=NotUnderstood`.
    NotUnderstood,
}

impl Operational {
    /// Takes an initiator's operational key over. `discovery`: keys of data are irrelevant then.
    pub(crate) fn take(&mut self, pair: Pair<'_>, options: &IscsiOptions, discovery: bool) -> Say {
        let value = pair.value;
        if self.joins && is_of_the_session(pair.key) {
            return Say::Irrelevant;
        }
        match pair.key {
            "HeaderDigest" => take_digest(value, &mut self.header_digest),
            "DataDigest" => take_digest(value, &mut self.data_digest),
            "MaxRecvDataSegmentLength" => match number(value) {
                Some(len @ LENGTH_MIN..=LENGTH_MAX) => {
                    self.data_to_initiator = len;
                    Say::Nothing
                }
                _ => Say::Reject,
            },
            "MaxConnections" if discovery => Say::Irrelevant,
            "MaxConnections" => {
                at_most(value, 1..=65_535, options.max_connections_per_session.max(1).into(), |agreed| {
                    self.connections_max = u16::try_from(agreed).unwrap_or(1);
                })
            }
            "ErrorRecoveryLevel" => at_most(value, 0..=2, 0, |_| ()),
            "DefaultTime2Wait" => {
                let ours = u32::from(options.default_time2wait);
                let Some(theirs) = number(value).filter(|value| *value <= 3600) else { return Say::Reject };
                let agreed = ours.max(theirs);
                self.time2wait = u16::try_from(agreed).unwrap_or(u16::MAX);
                Say::Value(agreed.to_string())
            }
            "DefaultTime2Retain" => at_most(value, 0..=3600, options.default_time2retain.into(), |agreed| {
                self.time2retain = u16::try_from(agreed).unwrap_or(0);
            }),
            "IFMarker" | "OFMarker" => match boolean(value) {
                Some(_) => Say::Value("No".to_owned()),
                None => Say::Reject,
            },
            "IFMarkInt" | "OFMarkInt" => Say::Irrelevant,
            "TaskReporting" => match value.split(',').any(|offer| offer == "RFC3720") {
                true => Say::Value("RFC3720".to_owned()),
                false => Say::Reject,
            },
            "iSCSIProtocolLevel" => at_most(value, 0..=31, 1, |_| ()),
            _ => self.take_data_key(pair, options, discovery),
        }
    }

    /// Keys of the transfer of data.
    fn take_data_key(&mut self, pair: Pair<'_>, options: &IscsiOptions, discovery: bool) -> Say {
        let value = pair.value;
        let say = match pair.key {
            "InitialR2T" => take_boolean(value, |theirs| {
                self.initial_r2t = theirs;
                theirs
            }),
            "ImmediateData" => take_boolean(value, |theirs| {
                self.immediate_data = theirs && options.immediate_data;
                self.immediate_data
            }),
            // Only in order: the result is Yes where either says so.
            "DataPDUInOrder" | "DataSequenceInOrder" => take_boolean(value, |_| true),
            "FirstBurstLength" => {
                at_most(value, LENGTH_MIN..=LENGTH_MAX, options.first_burst_length, |agreed| {
                    self.first_burst = agreed;
                })
            }
            "MaxBurstLength" => at_most(value, LENGTH_MIN..=LENGTH_MAX, options.max_burst_length, |agreed| {
                self.max_burst = agreed;
            }),
            "MaxOutstandingR2T" => {
                at_most(value, 1..=65_535, options.max_r2t_per_connection.into(), |agreed| {
                    self.r2t_max = u16::try_from(agreed).unwrap_or(1);
                })
            }
            _ => return Say::NotUnderstood,
        };
        if discovery && say != Say::Reject { Say::Irrelevant } else { say }
    }

    /// What holds on a connection that has agreed on `own` in a session that has agreed on this.
    #[must_use]
    pub(crate) fn for_connection(&self, own: &Self) -> Self {
        Self {
            joins: own.joins,
            header_digest: own.header_digest,
            data_digest: own.data_digest,
            data_to_initiator: own.data_to_initiator,
            data_to_target: own.data_to_target,
            ..self.clone()
        }
    }

    /// FirstBurstLength is at most MaxBurstLength, whatever was said of them (13.14).
    pub(crate) fn finish(&mut self) {
        self.first_burst = self.first_burst.min(self.max_burst);
    }
}

/// Whether a key is negotiated by the leading connection for the whole session (RFC 7143, 13: scope SW, use LO).
fn is_of_the_session(key: &str) -> bool {
    matches!(
        key,
        "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel"
            | "TaskReporting"
            | "iSCSIProtocolLevel"
    )
}

/// Whether a key is one of those that a login may negotiate only in its operational stage.
pub(crate) fn is_operational(key: &str) -> bool {
    !matches!(
        key,
        "AuthMethod"
            | "CHAP_A"
            | "CHAP_I"
            | "CHAP_C"
            | "CHAP_N"
            | "CHAP_R"
            | "InitiatorName"
            | "InitiatorAlias"
            | "TargetName"
            | "SessionType"
    )
}

fn take_digest(value: &str, to: &mut bool) -> Say {
    // The first of the initiator's list that we know.
    match value.split(',').find(|offer| matches!(*offer, "CRC32C" | "None")) {
        Some(chosen) => {
            *to = chosen == "CRC32C";
            Say::Value(chosen.to_owned())
        }
        None => Say::Reject,
    }
}

fn take_boolean(value: &str, decide: impl FnOnce(bool) -> bool) -> Say {
    match boolean(value) {
        Some(theirs) => Say::Value(yes_no(decide(theirs)).to_owned()),
        None => Say::Reject,
    }
}

/// A numerical key whose result is the lesser of both parties' values.
fn at_most(value: &str, range: std::ops::RangeInclusive<u32>, ours: u32, agree: impl FnOnce(u32)) -> Say {
    match number(value) {
        Some(theirs) if range.contains(&theirs) => {
            let agreed = theirs.min(ours);
            agree(agreed);
            Say::Value(agreed.to_string())
        }
        _ => Say::Reject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(key: &str, value: &str) -> (Say, Operational) {
        let mut agreed = Operational::default();
        let say = agreed.take(Pair { key, value }, &IscsiOptions::default(), false);
        agreed.finish();
        (say, agreed)
    }

    fn value(key: &str, offer: &str) -> String {
        match say(key, offer).0 {
            Say::Value(value) => value,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn every_numerical_key_is_held_to_its_range() {
        for (key, low, high) in [
            ("MaxConnections", 1, 65_535),
            ("FirstBurstLength", 512, LENGTH_MAX),
            ("MaxBurstLength", 512, LENGTH_MAX),
            ("MaxRecvDataSegmentLength", 512, LENGTH_MAX),
            ("MaxOutstandingR2T", 1, 65_535),
            ("DefaultTime2Wait", 0, 3600),
            ("DefaultTime2Retain", 0, 3600),
            ("ErrorRecoveryLevel", 0, 2),
        ] {
            for good in [low, high] {
                assert_ne!(say(key, &good.to_string()).0, Say::Reject, "{key}={good}");
            }
            let below = if low == 0 { "-1".to_owned() } else { (low - 1).to_string() };
            for bad in [below, (u64::from(high) + 1).to_string(), String::new(), "Yes".to_owned()] {
                assert_eq!(say(key, &bad).0, Say::Reject, "{key}={bad}");
            }
        }
    }

    #[test]
    fn results_follow_the_functions_of_the_standard() {
        assert_eq!(value("InitialR2T", "Yes"), "Yes");
        assert_eq!(value("InitialR2T", "No"), "No");
        assert_eq!(value("ImmediateData", "No"), "No");
        assert_eq!(value("DataPDUInOrder", "No"), "Yes");
        assert_eq!(value("DataSequenceInOrder", "No"), "Yes");
        assert_eq!(value("ErrorRecoveryLevel", "2"), "0");
        assert_eq!(value("MaxConnections", "8"), "2");
        assert_eq!(value("DefaultTime2Wait", "7"), "7");
        assert_eq!(value("DefaultTime2Wait", "0"), "2");
        assert_eq!(value("MaxBurstLength", "0x1000"), "4096");
        assert_eq!(value("HeaderDigest", "CRC32C,None"), "CRC32C");
        assert_eq!(value("DataDigest", "None,CRC32C"), "None");
        assert_eq!(value("HeaderDigest", "KRB5"), "Reject");
        assert_eq!(value("IFMarker", "Yes"), "No");
        assert_eq!(value("InitialR2T", "maybe"), "Reject");
        assert_eq!(value("X-com.example.key", "1"), "NotUnderstood");
    }

    #[test]
    fn the_first_burst_never_exceeds_a_burst() {
        assert_eq!(say("MaxBurstLength", "512").1.first_burst, 512);
        assert_eq!(say("MaxRecvDataSegmentLength", "512").1.data_to_initiator, 512);
    }

    #[test]
    fn keys_of_data_are_irrelevant_to_discovery() {
        let mut agreed = Operational::default();
        let pair = Pair { key: "ImmediateData", value: "Yes" };
        assert_eq!(agreed.take(pair, &IscsiOptions::default(), true), Say::Irrelevant);
    }
}
