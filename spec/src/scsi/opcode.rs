//! Operation codes and service actions (SPC-4 annex F, SBC-3 5).

codes! {
    /// OPERATION CODE: byte 0 of a CDB.
    pub struct Opcode(u8) {
        TEST_UNIT_READY = 0x00, "TEST UNIT READY";
        REQUEST_SENSE = 0x03, "REQUEST SENSE";
        READ_6 = 0x08, "READ(6)";
        WRITE_6 = 0x0a, "WRITE(6)";
        INQUIRY = 0x12, "INQUIRY";
        MODE_SELECT_6 = 0x15, "MODE SELECT(6)";
        RESERVE_6 = 0x16, "RESERVE(6)";
        RELEASE_6 = 0x17, "RELEASE(6)";
        MODE_SENSE_6 = 0x1a, "MODE SENSE(6)";
        START_STOP_UNIT = 0x1b, "START STOP UNIT";
        PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1e, "PREVENT ALLOW MEDIUM REMOVAL";
        READ_CAPACITY_10 = 0x25, "READ CAPACITY(10)";
        READ_10 = 0x28, "READ(10)";
        WRITE_10 = 0x2a, "WRITE(10)";
        WRITE_AND_VERIFY_10 = 0x2e, "WRITE AND VERIFY(10)";
        VERIFY_10 = 0x2f, "VERIFY(10)";
        PRE_FETCH_10 = 0x34, "PRE-FETCH(10)";
        SYNCHRONIZE_CACHE_10 = 0x35, "SYNCHRONIZE CACHE(10)";
        READ_DEFECT_DATA_10 = 0x37, "READ DEFECT DATA(10)";
        WRITE_SAME_10 = 0x41, "WRITE SAME(10)";
        UNMAP = 0x42, "UNMAP";
        SANITIZE = 0x48, "SANITIZE";
        MODE_SELECT_10 = 0x55, "MODE SELECT(10)";
        MODE_SENSE_10 = 0x5a, "MODE SENSE(10)";
        PERSISTENT_RESERVE_IN = 0x5e, "PERSISTENT RESERVE IN";
        PERSISTENT_RESERVE_OUT = 0x5f, "PERSISTENT RESERVE OUT";
        THIRD_PARTY_COPY_OUT = 0x83, "Third-party Copy OUT";
        THIRD_PARTY_COPY_IN = 0x84, "Third-party Copy IN";
        READ_16 = 0x88, "READ(16)";
        COMPARE_AND_WRITE = 0x89, "COMPARE AND WRITE";
        WRITE_16 = 0x8a, "WRITE(16)";
        ORWRITE_16 = 0x8b, "ORWRITE(16)";
        WRITE_AND_VERIFY_16 = 0x8e, "WRITE AND VERIFY(16)";
        VERIFY_16 = 0x8f, "VERIFY(16)";
        PRE_FETCH_16 = 0x90, "PRE-FETCH(16)";
        SYNCHRONIZE_CACHE_16 = 0x91, "SYNCHRONIZE CACHE(16)";
        WRITE_SAME_16 = 0x93, "WRITE SAME(16)";
        WRITE_ATOMIC_16 = 0x9c, "WRITE ATOMIC(16)";
        SERVICE_ACTION_IN_16 = 0x9e, "SERVICE ACTION IN(16)";
        REPORT_LUNS = 0xa0, "REPORT LUNS";
        MAINTENANCE_IN = 0xa3, "MAINTENANCE IN";
        MAINTENANCE_OUT = 0xa4, "MAINTENANCE OUT";
        READ_12 = 0xa8, "READ(12)";
        WRITE_12 = 0xaa, "WRITE(12)";
        WRITE_AND_VERIFY_12 = 0xae, "WRITE AND VERIFY(12)";
        VERIFY_12 = 0xaf, "VERIFY(12)";
        READ_DEFECT_DATA_12 = 0xb7, "READ DEFECT DATA(12)";
    }
}

codes! {
    /// Service actions of SERVICE ACTION IN(16).
    pub struct ServiceActionIn16(u8) {
        READ_CAPACITY_16 = 0x10, "READ CAPACITY(16)";
        GET_LBA_STATUS = 0x12, "GET LBA STATUS";
    }
}

codes! {
    /// Service actions of MAINTENANCE IN.
    pub struct MaintenanceIn(u8) {
        REPORT_TARGET_PORT_GROUPS = 0x0a, "REPORT TARGET PORT GROUPS";
        REPORT_SUPPORTED_OPERATION_CODES = 0x0c, "REPORT SUPPORTED OPERATION CODES";
        REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS = 0x0d, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS";
    }
}

codes! {
    /// Service actions of MAINTENANCE OUT.
    pub struct MaintenanceOut(u8) {
        SET_TARGET_PORT_GROUPS = 0x0a, "SET TARGET PORT GROUPS";
    }
}

codes! {
    /// Service actions of PERSISTENT RESERVE IN (SPC-4 6.15).
    pub struct PrIn(u8) {
        READ_KEYS = 0x00, "READ KEYS";
        READ_RESERVATION = 0x01, "READ RESERVATION";
        REPORT_CAPABILITIES = 0x02, "REPORT CAPABILITIES";
        READ_FULL_STATUS = 0x03, "READ FULL STATUS";
    }
}

codes! {
    /// Service actions of PERSISTENT RESERVE OUT (SPC-4 6.16).
    pub struct PrOut(u8) {
        REGISTER = 0x00, "REGISTER";
        RESERVE = 0x01, "RESERVE";
        RELEASE = 0x02, "RELEASE";
        CLEAR = 0x03, "CLEAR";
        PREEMPT = 0x04, "PREEMPT";
        PREEMPT_AND_ABORT = 0x05, "PREEMPT AND ABORT";
        REGISTER_AND_IGNORE_EXISTING_KEY = 0x06, "REGISTER AND IGNORE EXISTING KEY";
        REGISTER_AND_MOVE = 0x07, "REGISTER AND MOVE";
    }
}

codes! {
    /// Service actions of Third-party Copy OUT (SPC-4 6.3).
    pub struct CopyOut(u8) {
        EXTENDED_COPY_LID1 = 0x00, "EXTENDED COPY(LID1)";
        POPULATE_TOKEN = 0x10, "POPULATE TOKEN";
        WRITE_USING_TOKEN = 0x11, "WRITE USING TOKEN";
    }
}

codes! {
    /// Service actions of Third-party Copy IN (SPC-4 6.3).
    pub struct CopyIn(u8) {
        RECEIVE_COPY_STATUS_LID1 = 0x00, "RECEIVE COPY STATUS(LID1)";
        RECEIVE_COPY_OPERATING_PARAMETERS = 0x03, "RECEIVE COPY OPERATING PARAMETERS";
        RECEIVE_COPY_FAILURE_DETAILS_LID1 = 0x04, "RECEIVE COPY FAILURE DETAILS(LID1)";
        RECEIVE_ROD_TOKEN_INFORMATION = 0x07, "RECEIVE ROD TOKEN INFORMATION";
    }
}

codes! {
    /// Service actions of SANITIZE (SBC-3 5.26).
    pub struct Sanitize(u8) {
        OVERWRITE = 0x01, "OVERWRITE";
        BLOCK_ERASE = 0x02, "BLOCK ERASE";
        CRYPTOGRAPHIC_ERASE = 0x03, "CRYPTOGRAPHIC ERASE";
        EXIT_FAILURE_MODE = 0x1f, "EXIT FAILURE MODE";
    }
}
