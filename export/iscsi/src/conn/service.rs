//! Everything but commands: login, text, logout.

use std::rc::Rc;

use penstock_spec::iscsi::login::LoginStatus;
use penstock_spec::iscsi::service::TEXT_CONTINUE;
use penstock_spec::iscsi::text;
use penstock_spec::iscsi::{
    Bhs, DataLen, IscsiName, LoginReqHdr, LoginRespHdr, LogoutReqHdr, LogoutRespHdr, Opcode, RejectReason,
    TAG_NONE, TextRespHdr, pad_len,
};
use zerocopy::{IntoBytes, transmute_ref};

use super::session::Turn;
use super::{CmdState, Conn, ConnState, EndOf, Entered, Entering, IMMEDIATE_MAX, Session, Sink, Slab};
use crate::login::{Answer, Login, say};

/// Bytes of keys in one text request, over all its PDUs, at most.
const TEXT_IN_MAX: usize = 64 << 10;

impl Conn {
    /// A PDU that is no command and no data has come, with its text.
    pub(super) fn service<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        let opcode = bhs.opcode();
        if self.state == ConnState::Login {
            if opcode == Opcode::LOGIN_REQ && self.moves_away(bhs, data, sink) {
                return;
            }
            if opcode == Opcode::LOGIN_REQ {
                self.login_request(bhs, data, sink);
            } else {
                // Before the full feature phase nothing but logins may come (RFC 7143, 6.3).
                self.state = ConnState::Closed;
            }
            return;
        }
        if opcode.is_numbered() {
            match self.take_turn(bhs.cmd_sn.get(), bhs.is_immediate(), sink) {
                Turn::Next if self.waits_for_others(bhs) => return self.hold_service(bhs, data),
                Turn::Next => {}
                Turn::Ignore => return,
                Turn::Early => return self.hold_service(bhs, data),
            }
        }
        self.serve(bhs, data, sink);
    }

    /// Does what a PDU wants whose turn it is.
    pub(super) fn serve<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        match bhs.opcode() {
            Opcode::NOP_OUT => self.nop_out(bhs, data),
            Opcode::TASK_MGMT_REQ => self.task_management(bhs, sink),
            Opcode::TEXT_REQ => self.text_request(bhs, data, sink),
            Opcode::LOGOUT_REQ => self.logout(bhs, sink),
            Opcode::SNACK => self.reject(bhs, RejectReason::SNACK),
            _ => self.fatal(bhs, RejectReason::PROTOCOL),
        }
    }

    /// Whether the first login request names a session of another reactor: the connection has to go there.
    fn moves_away<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &S) -> bool {
        let hdr: &LoginReqHdr = transmute_ref!(bhs);
        let tsih = hdr.tsih.get();
        let first = self.login.as_ref().is_some_and(|login| !login.has_begun());
        let Some(reactor) = sink.elsewhere(tsih).filter(|_| tsih != 0 && first) else { return false };
        let mut bytes = Bhs { ahs_words: 0, ..*bhs }.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len() + pad_len(u32::try_from(data.len()).unwrap_or(0)) as usize, 0);
        self.moves = Some((reactor, bytes));
        true
    }

    fn login_request<S: Sink>(&mut self, bhs: &Bhs, data: &[u8], sink: &mut S) {
        let hdr: &LoginReqHdr = transmute_ref!(bhs);
        let Some(mut login) = self.login.take() else { return };
        self.cid = hdr.cid.get();
        self.login_cmd_sn = hdr.cmd_sn.get();
        let outcome = login.request(hdr, data, self.tpgt, self.addr.ip(), sink);
        self.key = login.key(self.tpgt);
        let (mut answer, mut status) = match outcome {
            Ok(answer) => (answer, LoginStatus::SUCCESS),
            Err(status) => (Answer { text: login.refusal_keys(), ..Answer::default() }, status),
        };
        if answer.done {
            match self.enter(hdr, &login, sink) {
                Entered::Now(session) => self.begin(session, &login),
                Entered::Later => {
                    self.login = Some(login);
                    self.parked = Some(Box::new((*hdr, answer)));
                    return;
                }
                Entered::Refused(why) => (answer, status) = (Answer::default(), why),
            }
        }
        self.login = Some(login);
        self.end_login(hdr, &answer, status);
    }

    /// What this login takes the place of has ended.
    pub(crate) fn login_again<S: Sink>(&mut self, sink: &mut S) {
        let Some(parked) = self.parked.take() else { return };
        let (hdr, answer) = *parked;
        let Some(login) = self.login.take() else { return };
        let mut status = LoginStatus::SUCCESS;
        match self.enter(&hdr, &login, sink) {
            Entered::Now(session) => self.begin(session, &login),
            Entered::Later => {
                self.login = Some(login);
                self.parked = Some(Box::new((hdr, answer)));
                return;
            }
            Entered::Refused(why) => status = why,
        }
        self.login = Some(login);
        let answer = if status == LoginStatus::SUCCESS { answer } else { Answer::default() };
        self.end_login(&hdr, &answer, status);
        let bytes = std::mem::take(&mut self.leftover);
        self.receive(&bytes, sink);
    }

    fn enter<S: Sink>(&mut self, hdr: &LoginReqHdr, login: &Login, sink: &mut S) -> Entered {
        let Some(key) = &self.key else { return Entered::Refused(LoginStatus::TARGET_ERROR) };
        let window = login.window(sink.options());
        sink.enter(&Entering {
            conn: self.id,
            cid: self.cid,
            key,
            tsih: hdr.tsih.get(),
            addr: self.addr,
            agreed: &login.agreed,
            window,
            cmd_sn: hdr.cmd_sn.get(),
        })
    }

    /// The connection is part of a session now.
    fn begin(&mut self, session: Rc<Session>, login: &Login) {
        self.tsih = session.tsih;
        self.window = session.window;
        self.agreed = session.agreed.for_connection(&login.agreed);
        // Slots for a window of commands whose answers are being sent, and another whose are not.
        self.slab = Slab::new(self.window.saturating_add(IMMEDIATE_MAX).saturating_mul(2).min(0x7fff));
        self.session = Some(session);
    }

    /// Answers a login request; where it was the last, the full feature phase begins.
    fn end_login(&mut self, hdr: &LoginReqHdr, answer: &Answer, status: LoginStatus) {
        // The login is over only when its last response is pushed: that one has no digest.
        self.push_login_response(hdr, answer, status);
        if answer.done {
            self.login = None;
            self.state = ConnState::Full;
        } else if status != LoginStatus::SUCCESS {
            self.refused = Some(status);
            tracing::debug!(peer = %self.addr, %status, "an iSCSI login is refused");
            self.end();
        }
    }

    /// Tells the session the commands that it has to know once there is a second connection.
    pub(crate) fn track_commands(&self) {
        let Some(session) = self.session.as_ref() else { return };
        for (_, cmd) in self.slab.used().filter(|(_, cmd)| cmd.is_pending() && cmd.state != CmdState::Early) {
            session.track(cmd.seq, cmd.lun, cmd.ordered);
        }
    }

    fn push_login_response(&mut self, request: &LoginReqHdr, answer: &Answer, status: LoginStatus) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = LoginRespHdr {
            opcode: Opcode::LOGIN_RESP.0,
            flags: answer.flags,
            data_len: DataLen::new(u32::try_from(answer.text.len()).unwrap_or(0)),
            isid: request.isid,
            tsih: if answer.done { self.tsih } else { request.tsih.get() }.into(),
            itt: request.itt,
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            status: status.0.into(),
            ..LoginRespHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &answer.text);
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

    /// The answer to text keys; `None` where they are none, or ask for targets in a wrong way: the request is rejected.
    fn answer_keys<S: Sink>(&mut self, keys: &[u8], sink: &mut S) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let key = self.key?;
        for pair in text::pairs(keys) {
            let pair = pair.ok()?;
            match (pair.key, pair.value) {
                ("SendTargets", "All") if key.target.is_none() => {
                    out.extend(sink.send_targets(&key, (self.addr, self.local), None));
                }
                // In a normal session all there is to be told of is its own target.
                ("SendTargets", "" | "All") => {
                    let own = key.target?;
                    out.extend(sink.send_targets(&key, (self.addr, self.local), Some(own.as_str())));
                }
                ("SendTargets", name) => {
                    // A name that is none, or of another target than the session's, is no answer's "nothing".
                    let name: IscsiName = name.parse().ok()?;
                    if key.target.is_some_and(|target| target != name) {
                        return None;
                    }
                    out.extend(sink.send_targets(&key, (self.addr, self.local), Some(name.as_str())));
                }
                // Meant, but misspelt: "not understood" would look like an answer without targets.
                (other, _) if is_like(other, "SendTargets") => return None,
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

    fn logout<S: Sink>(&mut self, bhs: &Bhs, sink: &mut S) {
        let hdr: &LogoutReqHdr = transmute_ref!(bhs);
        let Some(session) = self.session.clone() else { return };
        let (cid, mine) = (hdr.cid.get(), self.cid);
        let response = match hdr.reason & 0x7f {
            0 => {
                sink.end(EndOf::Others { tsih: session.tsih, but: self.id });
                0
            }
            1 if cid == mine => 0,
            1 => match session.members().iter().find(|member| member.cid == cid) {
                Some(member) => {
                    sink.end(EndOf::Conn(member.conn));
                    0
                }
                None => 1,
            },
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
        // Whoever asks from now on finds it gone.
        let ends = response == 0 && (bhs.flags & 0x7f == 0 || cid == mine);
        self.push_pdu(hdr.as_bytes(), &[]);
        if ends {
            session.leave(self.id);
            self.end();
        }
    }
}

/// Whether `word` begins as `key` does, whatever its case.
fn is_like(word: &str, key: &str) -> bool {
    word.get(..key.len()).is_some_and(|head| head.eq_ignore_ascii_case(key))
}
