//! Everything but commands: login, text, NOP, logout.

use penstock_spec::iscsi::login::LoginStatus;
use penstock_spec::iscsi::service::TEXT_CONTINUE;
use penstock_spec::iscsi::text;
use penstock_spec::iscsi::{
    AsyncEvent, AsyncHdr, Bhs, DataLen, LoginReqHdr, LoginRespHdr, LogoutReqHdr, LogoutRespHdr, NopInHdr,
    Opcode, RejectReason, TAG_NONE, TextRespHdr,
};
use zerocopy::{IntoBytes, transmute_ref};

use super::command::Turn;
use super::{Conn, ConnState, IMMEDIATE_MAX, Sink, Slab};
use crate::login::{Answer, say};

/// Bytes of keys in one text request, over all its PDUs, at most.
const TEXT_IN_MAX: usize = 64 << 10;

impl Conn {
    /// A PDU that is no command and no data has come, with its text.
    pub(super) fn service<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        let opcode = bhs.opcode();
        if self.state == ConnState::Login {
            if opcode == Opcode::LOGIN_REQ {
                self.login_request(bhs, data, sink);
            } else {
                // Before the full feature phase nothing but logins may come (RFC 7143, 6.3).
                self.state = ConnState::Closed;
            }
            return;
        }
        if opcode.is_numbered() {
            match self.take_turn(bhs.cmd_sn.get(), bhs.is_immediate()) {
                Turn::Next => {}
                Turn::Ignore => return,
                Turn::Gap => return self.fatal(bhs, RejectReason::PROTOCOL),
            }
        }
        match opcode {
            Opcode::NOP_OUT => self.nop_out(bhs, data),
            Opcode::TASK_MGMT_REQ => self.task_management(bhs, sink),
            Opcode::TEXT_REQ => self.text_request(bhs, data, sink),
            Opcode::LOGOUT_REQ => self.logout(bhs),
            Opcode::SNACK => self.reject(bhs, RejectReason::SNACK),
            _ => self.fatal(bhs, RejectReason::PROTOCOL),
        }
    }

    fn login_request<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        let hdr: &LoginReqHdr = transmute_ref!(bhs);
        let Some(mut login) = self.login.take() else { return };
        self.cid = hdr.cid.get();
        self.numbers.exp_cmd_sn = hdr.cmd_sn.get();
        let outcome = login.request(hdr, data, self.tpgt, self.addr.ip(), sink);
        self.key = login.key(self.tpgt);
        let (answer, status) = match outcome {
            Ok(answer) => (answer, LoginStatus::SUCCESS),
            Err(status) => (Answer { text: login.refusal_keys(), ..Answer::default() }, status),
        };
        let window = login.window(sink.options());
        if answer.done
            && let Some(key) = &self.key
        {
            (self.tsih, self.nexus) = sink.begin_session(self.id, key, self.addr);
            self.agreed = login.agreed.clone();
            self.numbers.window = window;
            self.numbers.max_cmd_sn = self.numbers.exp_cmd_sn.wrapping_add(u32::from(window)).wrapping_sub(1);
            // Slots for a window of commands whose answers are being sent, and another whose are not.
            self.slab = Slab::new(window.saturating_add(IMMEDIATE_MAX).saturating_mul(2).min(0x7fff));
        } else {
            self.numbers.max_cmd_sn = self.numbers.exp_cmd_sn;
        }
        // The login is over only when its last response is pushed: that one has no digest.
        self.login = Some(login);
        self.push_login_response(hdr, &answer, status);
        if answer.done {
            self.login = None;
            self.state = ConnState::Full;
        } else if status != LoginStatus::SUCCESS {
            self.refused = Some(status);
            tracing::debug!(peer = %self.addr, %status, "an iSCSI login is refused");
            self.end();
        }
    }

    fn push_login_response(&mut self, request: &LoginReqHdr, answer: &Answer, status: LoginStatus) {
        let hdr = LoginRespHdr {
            opcode: Opcode::LOGIN_RESP.0,
            flags: answer.flags,
            data_len: DataLen::new(u32::try_from(answer.text.len()).unwrap_or(0)),
            isid: request.isid,
            tsih: if answer.done { self.tsih } else { request.tsih.get() }.into(),
            itt: request.itt,
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            status: status.0.into(),
            ..LoginRespHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &answer.text);
    }

    fn nop_out(&mut self, bhs: &Bhs, data: &[u8]) {
        if bhs.ttt.get() != TAG_NONE {
            // The answer to a ping of ours.
            self.ping_out = false;
        }
        if bhs.itt.get() == TAG_NONE {
            return;
        }
        let data = data.get(..self.agreed.data_to_initiator as usize).unwrap_or(data);
        let stat_sn = self.next_stat_sn();
        self.push_nop_in(bhs, TAG_NONE, stat_sn, data);
    }

    /// Asks the initiator whether it is still there.
    pub(crate) fn push_ping(&mut self) {
        self.ping = self.ping.wrapping_add(1) & 0xffff;
        self.ping_out = true;
        let bhs = Bhs { itt: TAG_NONE.into(), ..Bhs::default() };
        // It has no StatSN of its own: it shows the next.
        let stat_sn = self.numbers.stat_sn;
        self.push_nop_in(&bhs, self.ping, stat_sn, &[]);
    }

    fn push_nop_in(&mut self, bhs: &Bhs, ttt: u32, stat_sn: u32, data: &[u8]) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = NopInHdr {
            opcode: Opcode::NOP_IN.0,
            flags: 0x80,
            data_len: DataLen::new(u32::try_from(data.len()).unwrap_or(0)),
            lun: bhs.lun,
            itt: bhs.itt,
            ttt: ttt.into(),
            stat_sn: stat_sn.into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..NopInHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), data);
    }

    fn text_request<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        let ttt = bhs.ttt.get();
        if ttt != TAG_NONE {
            // What is left of the last answer, or the rest of a question.
            if ttt != self.text_ttt || (self.text_out.is_empty() && self.text_in.is_empty()) {
                return self.reject(bhs, RejectReason::PROTOCOL);
            }
        } else {
            self.text_out.clear();
            self.text_in.clear();
        }
        if self.text_in.len() + data.len() > TEXT_IN_MAX {
            self.text_in.clear();
            return self.reject(bhs, RejectReason::PROTOCOL);
        }
        self.text_in.extend_from_slice(data);
        if bhs.flags & TEXT_CONTINUE != 0 {
            if bhs.is_final() {
                return self.reject(bhs, RejectReason::INVALID_FIELD);
            }
            return self.push_text(bhs, &[], true);
        }
        if self.text_out.is_empty() {
            let keys = std::mem::take(&mut self.text_in);
            match self.answer_keys(&keys, sink) {
                Some(out) => self.text_out = out,
                None => return self.reject(bhs, RejectReason::INVALID_FIELD),
            }
        }
        let segment = (self.agreed.data_to_initiator as usize).min(self.text_out.len());
        let rest = self.text_out.split_off(segment);
        let now = std::mem::replace(&mut self.text_out, rest);
        self.push_text(bhs, &now, !self.text_out.is_empty());
    }

    /// The answer to text keys; `None` where they are none.
    fn answer_keys<S: Sink>(&mut self, keys: &[u8], sink: &mut S) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let key = self.key?;
        for pair in text::pairs(keys) {
            let pair = pair.ok()?;
            match (pair.key, pair.value) {
                ("SendTargets", "All") if key.target.is_none() => {
                    out.extend(sink.send_targets(&key, (self.addr, self.local), None));
                }
                // In a normal session the empty name is the session's own target, and no other is told.
                ("SendTargets", "All") => say(&mut out, "SendTargets", "Reject"),
                ("SendTargets", "") => match key.target {
                    Some(name) => {
                        out.extend(sink.send_targets(&key, (self.addr, self.local), Some(name.as_str())))
                    }
                    None => say(&mut out, "SendTargets", "Reject"),
                },
                ("SendTargets", name) => {
                    let other = key.target.is_some_and(|target| target.as_str() != name);
                    if other {
                        say(&mut out, "SendTargets", "Reject");
                    } else {
                        out.extend(sink.send_targets(&key, (self.addr, self.local), Some(name)));
                    }
                }
                ("MaxRecvDataSegmentLength", _) => {
                    self.agreed.take(pair, sink.options(), false);
                }
                (_, "NotUnderstood" | "Irrelevant" | "Reject") => {}
                (other, _) => say(&mut out, other, "NotUnderstood"),
            }
        }
        Some(out)
    }

    fn push_text(&mut self, bhs: &Bhs, data: &[u8], more: bool) {
        self.text_ttt = self.text_ttt.wrapping_add(1) & 0xffff;
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let continues = more && !data.is_empty();
        let hdr = TextRespHdr {
            opcode: Opcode::TEXT_RESP.0,
            flags: if !more {
                0x80
            } else if continues {
                TEXT_CONTINUE
            } else {
                0
            },
            data_len: DataLen::new(u32::try_from(data.len()).unwrap_or(0)),
            lun: bhs.lun,
            itt: bhs.itt,
            ttt: if more { self.text_ttt } else { TAG_NONE }.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..TextRespHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), data);
    }

    fn logout(&mut self, bhs: &Bhs) {
        let hdr: &LogoutReqHdr = transmute_ref!(bhs);
        let response = match hdr.reason & 0x7f {
            0 => 0,
            1 if hdr.cid.get() == self.cid => 0,
            1 => 1,
            // Recovery is for error recovery level 2.
            2 => 2,
            _ => return self.reject(bhs, RejectReason::INVALID_FIELD),
        };
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = LogoutRespHdr {
            opcode: Opcode::LOGOUT_RESP.0,
            flags: 0x80,
            response,
            itt: bhs.itt,
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            time2wait: self.agreed.time2wait.into(),
            time2retain: self.agreed.time2retain.into(),
            ..LogoutRespHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &[]);
        if response == 0 {
            self.end();
        }
    }

    /// Asks the initiator to log out within `seconds` (RFC 7143, 11.9.1).
    pub(crate) fn push_logout_request(&mut self, seconds: u16) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = AsyncHdr {
            opcode: Opcode::ASYNC.0,
            flags: 0x80,
            itt: TAG_NONE.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            event: AsyncEvent::LOGOUT_REQUEST,
            parameter3: seconds.into(),
            ..AsyncHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &[]);
    }
}
