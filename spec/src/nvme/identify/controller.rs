//! Identify Controller data structures (Base 5.2.14.2.1; NVM Command Set 4.1.5.4).

use zerocopy::little_endian::{U16, U32, U64};

wire! {
    /// Identify Controller, CNS 01h (Base, Figure "Identify - Identify Controller Data Structure").
    ///
    /// The 16-byte capacities are 128-bit little-endian. ASCII fields are padded with spaces.
    pub struct IdentifyController[4096] {
        /// PCI Vendor ID.
        pub vid @ 0: U16,
        /// PCI Subsystem Vendor ID.
        pub ssvid @ 2: U16,
        /// Serial Number, ASCII.
        pub sn @ 4: [u8; 20],
        /// Model Number, ASCII.
        pub mn @ 24: [u8; 40],
        /// Firmware Revision, ASCII.
        pub fr @ 64: [u8; 8],
        /// Recommended Arbitration Burst, log2.
        pub rab @ 72: u8,
        /// IEEE OUI Identifier, little-endian.
        pub ieee @ 73: [u8; 3],
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities: see [`MultipathCapabilities`].
        pub cmic @ 76: u8,
        /// Maximum Data Transfer Size, log2 in units of CAP.MPSMIN pages; 0 is no limit.
        pub mdts @ 77: u8,
        /// Controller ID.
        pub cntlid @ 78: U16,
        /// Version, as the VS property.
        pub ver @ 80: U32,
        /// RTD3 Resume Latency, microseconds.
        pub rtd3r_us @ 84: U32,
        /// RTD3 Entry Latency, microseconds.
        pub rtd3e_us @ 88: U32,
        /// Optional Asynchronous Events Supported: see [`crate::nvme::event::EventConfig`].
        pub oaes @ 92: U32,
        /// Controller Attributes: see [`ControllerAttributes`].
        pub ctratt @ 96: U32,
        /// Read Recovery Levels Supported.
        pub rrls @ 100: U16,
        /// Boot Partition Capabilities.
        pub bpcap @ 102: u8,
        rsvd103 @ 103: u8,
        /// NVM Subsystem Shutdown Latency, microseconds.
        pub nssl_us @ 104: U32,
        rsvd108 @ 108: [u8; 2],
        /// Power Loss Signaling Information.
        pub plsi @ 110: u8,
        /// Controller Type.
        pub cntrltype @ 111: ControllerType,
        /// FRU Globally Unique Identifier.
        pub fguid @ 112: [u8; 16],
        /// Command Retry Delay Times 1 to 3, 100 ms.
        pub crdt @ 128: [U16; 3],
        /// Controller Reachability Capabilities.
        pub crcap @ 134: u8,
        /// Controller Instance Uniquifier: counts the times that the controller became ready; never 0 where supported.
        pub ciu @ 135: u8,
        /// Controller Instance Random Number.
        pub cirn @ 136: U64,
        rsvd144 @ 144: [u8; 109],
        /// NVM Subsystem Report.
        pub nvmsr @ 253: u8,
        /// VPD Write Cycle Information.
        pub vwci @ 254: u8,
        /// Management Endpoint Capabilities.
        pub mec @ 255: u8,
        /// Optional Admin Command Support: see [`OptionalAdmin`].
        pub oacs @ 256: U16,
        /// Abort Command Limit, 0's based.
        pub acl0 @ 258: u8,
        /// Asynchronous Event Request Limit, 0's based.
        pub aerl0 @ 259: u8,
        /// Firmware Updates.
        pub frmw @ 260: u8,
        /// Log Page Attributes: see [`LogPageAttributes`].
        pub lpa @ 261: u8,
        /// Error Log Page Entries, 0's based.
        pub elpe0 @ 262: u8,
        /// Number of Power States Support, 0's based.
        pub npss0 @ 263: u8,
        /// Admin Vendor Specific Command Configuration.
        pub avscc @ 264: u8,
        /// Autonomous Power State Transition Attributes.
        pub apsta @ 265: u8,
        /// Warning Composite Temperature Threshold, kelvins.
        pub wctemp @ 266: U16,
        /// Critical Composite Temperature Threshold, kelvins.
        pub cctemp @ 268: U16,
        /// Maximum Time for Firmware Activation, 100 ms.
        pub mtfa @ 270: U16,
        /// Host Memory Buffer Preferred Size, 4 KiB.
        pub hmpre @ 272: U32,
        /// Host Memory Buffer Minimum Size, 4 KiB.
        pub hmmin @ 276: U32,
        /// Total NVM Capacity, bytes.
        pub tnvmcap @ 280: [u8; 16],
        /// Unallocated NVM Capacity, bytes.
        pub unvmcap @ 296: [u8; 16],
        /// Replay Protected Memory Block Support.
        pub rpmbs @ 312: U32,
        /// Extended Device Self-test Time, minutes.
        pub edstt @ 316: U16,
        /// Device Self-test Options.
        pub dsto @ 318: u8,
        /// Firmware Update Granularity, 4 KiB.
        pub fwug @ 319: u8,
        /// Keep Alive Support: granularity of the timer, 100 ms; 0 is no support.
        pub kas @ 320: U16,
        /// Host Controlled Thermal Management Attributes.
        pub hctma @ 322: U16,
        /// Minimum Thermal Management Temperature, kelvins.
        pub mntmt @ 324: U16,
        /// Maximum Thermal Management Temperature, kelvins.
        pub mxtmt @ 326: U16,
        /// Sanitize Capabilities.
        pub sanicap @ 328: U32,
        /// Host Memory Buffer Minimum Descriptor Entry Size, 4 KiB.
        pub hmminds @ 332: U32,
        /// Host Memory Maximum Descriptors Entries.
        pub hmmaxd @ 336: U16,
        /// NVM Set Identifier Maximum.
        pub nsetidmax @ 338: U16,
        /// Endurance Group Identifier Maximum.
        pub endgidmax @ 340: U16,
        /// ANA Transition Time, seconds.
        pub anatt_s @ 342: u8,
        /// ANA Capabilities: see [`crate::nvme::log::ana::AnaCapabilities`].
        pub anacap @ 343: u8,
        /// ANA Group Identifier Maximum.
        pub anagrpmax @ 344: U32,
        /// Number of ANA Group Identifiers.
        pub nanagrpid @ 348: U32,
        /// Persistent Event Log Size, 64 KiB.
        pub pels @ 352: U32,
        /// Domain Identifier.
        pub domainid @ 356: U16,
        /// Key Per I/O Capabilities.
        pub kpioc @ 358: u8,
        rsvd359 @ 359: u8,
        /// Maximum Processing Time for Firmware Activation Without Reset, 100 ms.
        pub mptfawr @ 360: U16,
        rsvd362 @ 362: [u8; 6],
        /// Max Endurance Group Capacity, bytes.
        pub megcap @ 368: [u8; 16],
        /// Temperature Threshold Hysteresis Attributes.
        pub tmpthha @ 384: u8,
        rsvd385 @ 385: u8,
        /// Command Quiesce Time, milliseconds.
        pub cqt_ms @ 386: U16,
        rsvd388 @ 388: [u8; 124],
        /// Submission Queue Entry Size, log2: required (3:0), maximum (7:4). Over fabrics 66h.
        pub sqes @ 512: u8,
        /// Completion Queue Entry Size, log2: required (3:0), maximum (7:4). Over fabrics 44h.
        pub cqes @ 513: u8,
        /// Maximum Outstanding Commands, per I/O queue, over fabrics.
        pub maxcmd @ 514: U16,
        /// Number of Namespaces: the largest valid NSID.
        pub nn @ 516: U32,
        /// Optional NVM Command Support: see [`OptionalNvm`].
        pub oncs @ 520: U16,
        /// Fused Operation Support: bit 0 Compare and Write.
        pub fuses @ 522: U16,
        /// Format NVM Attributes.
        pub fna @ 524: u8,
        /// Volatile Write Cache: see [`WriteCache`].
        pub vwc @ 525: u8,
        /// Atomic Write Unit Normal, blocks, 0's based.
        pub awun0 @ 526: U16,
        /// Atomic Write Unit Power Fail, blocks, 0's based.
        pub awupf0 @ 528: U16,
        /// I/O Command Set Vendor Specific Command Configuration.
        pub icsvscc @ 530: u8,
        /// Namespace Write Protection Capabilities.
        pub nwpc @ 531: u8,
        /// Atomic Compare & Write Unit, blocks, 0's based.
        pub acwu0 @ 532: U16,
        /// Copy Descriptor Formats Supported, bit n for format n.
        pub cdfs @ 534: U16,
        /// SGL Support: see [`SglSupport`].
        pub sgls @ 536: U32,
        /// Maximum Number of Allowed Namespaces; 0 means NN.
        pub mnan @ 540: U32,
        /// Maximum Domain Namespace Attachments.
        pub maxdna @ 544: [u8; 16],
        /// Maximum I/O Controller Namespace Attachments.
        pub maxcna @ 560: U32,
        /// Optimal Aggregated Queue Depth.
        pub oaqd @ 564: U32,
        /// Recommended Host-Initiated Refresh Interval.
        pub rhiri @ 568: u8,
        /// Host-Initiated Refresh Time.
        pub hirt @ 569: u8,
        /// Controller Maximum Memory Range Tracking Descriptors.
        pub cmmrtd @ 570: U16,
        /// NVM Subsystem Maximum Memory Range Tracking Descriptors.
        pub nmmrtd @ 572: U16,
        /// Minimum Memory Range Tracking Granularity.
        pub minmrtg @ 574: u8,
        /// Maximum Memory Range Tracking Granularity.
        pub maxmrtg @ 575: u8,
        /// Tracking Attributes.
        pub trattr @ 576: u8,
        rsvd577 @ 577: u8,
        /// Maximum Controller User Data Migration Queues.
        pub mcudmq @ 578: U16,
        /// Maximum NVM Subsystem User Data Migration Queues.
        pub mnsudmq @ 580: U16,
        /// Maximum CDQ Memory Ranges.
        pub mcmr @ 582: U16,
        /// NVM Subsystem Maximum CDQ Memory Ranges.
        pub nmcmr @ 584: U16,
        /// Maximum Controller Data Queue PRP Count.
        pub mcdqpc @ 586: U16,
        rsvd588 @ 588: [u8; 180],
        /// NVM Subsystem NVMe Qualified Name, UTF-8, padded with zeroes.
        pub subnqn @ 768: [u8; 256],
        rsvd1024 @ 1024: [u8; 768],
        /// I/O Queue Command Capsule Supported Size, 16 bytes (fabrics only); at least 4.
        pub ioccsz @ 1792: U32,
        /// I/O Queue Response Capsule Supported Size, 16 bytes (fabrics only); at least 1.
        pub iorcsz @ 1796: U32,
        /// In Capsule Data Offset from the end of the SQE, 16 bytes; 0 on NVMe/TCP.
        pub icdoff @ 1800: U16,
        /// Fabrics Controller Attributes: bit 0 set for a static controller model.
        pub fcatt @ 1802: u8,
        /// Maximum SGL Data Block Descriptors in a capsule; 0 is no limit.
        pub msdbd @ 1803: u8,
        /// Optional Fabrics Commands Support: bit 0 Disconnect.
        pub ofcs @ 1804: U16,
        /// Discovery Controller Type.
        pub dctype @ 1806: u8,
        /// Cross-Controller Reset Limit.
        pub ccrl @ 1807: u8,
        rsvd1808 @ 1808: [u8; 240],
        /// Power State Descriptors.
        pub psd @ 2048: [PowerStateDescriptor; 32],
        /// Vendor specific.
        pub vs @ 3072: [u8; 1024],
    }
}

codes! {
    /// Controller Type (CNTRLTYPE).
    pub struct ControllerType(u8) {
        NOT_REPORTED = 0x0, "not reported";
        IO = 0x1, "I/O controller";
        DISCOVERY = 0x2, "Discovery controller";
        ADMINISTRATIVE = 0x3, "Administrative controller";
    }
}

bits! {
    /// CMIC of Identify Controller.
    pub struct MultipathCapabilities(u8) {
        mports / with_mports: bool @ 0, 1, "The NVM subsystem may have more than one port";
        mctrs / with_mctrs: bool @ 1, 1, "The NVM subsystem may have two or more controllers";
        funct / with_funct: bool @ 2, 1, "The controller belongs to an SR-IOV Virtual Function";
        anars / with_anars: bool @ 3, 1, "ANA Reporting is supported";
    }
}

bits! {
    /// CTRATT of Identify Controller.
    pub struct ControllerAttributes(u32) {
        hids / with_hids: bool @ 0, 1, "128-bit Host Identifier Support";
        nopspm / with_nopspm: bool @ 1, 1, "Non-Operational Power State Permissive Mode";
        nsets / with_nsets: bool @ 2, 1, "NVM Sets";
        rrlvls / with_rrlvls: bool @ 3, 1, "Read Recovery Levels";
        egs / with_egs: bool @ 4, 1, "Endurance Groups";
        plm / with_plm: bool @ 5, 1, "Predictable Latency Mode";
        tbkas / with_tbkas: bool @ 6, 1, "Traffic Based Keep Alive Support";
        ng / with_ng: bool @ 7, 1, "Namespace Granularity";
        sqa / with_sqa: bool @ 8, 1, "SQ Associations";
        ulist / with_ulist: bool @ 9, 1, "UUID List";
        mds / with_mds: bool @ 10, 1, "Multi-Domain Subsystem";
        fcm / with_fcm: bool @ 11, 1, "Fixed Capacity Management";
        vcm / with_vcm: bool @ 12, 1, "Variable Capacity Management";
        deg / with_deg: bool @ 13, 1, "Delete Endurance Group";
        dnvms / with_dnvms: bool @ 14, 1, "Delete NVM Set";
        elbas / with_elbas: bool @ 15, 1, "Extended LBA Formats Supported";
        mem / with_mem: bool @ 16, 1, "MDTS and Size Limits Exclude Metadata";
        hmbr / with_hmbr: bool @ 17, 1, "HMB Restrict Non-Operational Power State Access";
        rhii / with_rhii: bool @ 18, 1, "Reservations and Host Identifier Interaction";
        fdps / with_fdps: bool @ 19, 1, "Flexible Data Placement Support";
    }
}

bits! {
    /// OACS of Identify Controller.
    pub struct OptionalAdmin(u16) {
        ssrs / with_ssrs: bool @ 0, 1, "Security Send and Security Receive";
        fnvms / with_fnvms: bool @ 1, 1, "Format NVM";
        fwds / with_fwds: bool @ 2, 1, "Firmware Commit and Firmware Image Download";
        nms / with_nms: bool @ 3, 1, "Namespace Management and Attachment";
        dsts / with_dsts: bool @ 4, 1, "Device Self-test";
        dirs / with_dirs: bool @ 5, 1, "Directives";
        nsrs / with_nsrs: bool @ 6, 1, "NVMe-MI Send and NVMe-MI Receive";
        vms / with_vms: bool @ 7, 1, "Virtualization Management";
        dbcs / with_dbcs: bool @ 8, 1, "Doorbell Buffer Config";
        glss / with_glss: bool @ 9, 1, "Get LBA Status";
        cfls / with_cfls: bool @ 10, 1, "Command and Feature Lockdown";
        hmlms / with_hmlms: bool @ 11, 1, "Host Managed Live Migration";
    }
}

bits! {
    /// ONCS of Identify Controller.
    pub struct OptionalNvm(u16) {
        nvmcmps / with_nvmcmps: bool @ 0, 1, "Compare";
        nvmwusv / with_nvmwusv: bool @ 1, 1, "Write Uncorrectable";
        nvmdsmsv / with_nvmdsmsv: bool @ 2, 1, "Dataset Management";
        nvmwzsv / with_nvmwzsv: bool @ 3, 1, "Write Zeroes";
        ssfs / with_ssfs: bool @ 4, 1, "Save and Select fields of Set and Get Features";
        reservs / with_reservs: bool @ 5, 1, "Reservations";
        tss / with_tss: bool @ 6, 1, "Timestamp";
        nvmvfys / with_nvmvfys: bool @ 7, 1, "Verify";
        nvmcpys / with_nvmcpys: bool @ 8, 1, "Copy";
        nvmcsa / with_nvmcsa: bool @ 9, 1, "Copies are atomic in a single write unit";
        nvmafc / with_nvmafc: bool @ 10, 1, "All fast copies";
        maxwzd / with_maxwzd: bool @ 11, 1, "Maximum Write Zeroes with Deallocate (WZDSL is in use)";
        nszs / with_nszs: bool @ 12, 1, "Namespace Zeroes";
    }
}

bits! {
    /// LPA of Identify Controller.
    pub struct LogPageAttributes(u8) {
        smarts / with_smarts: bool @ 0, 1, "SMART / Health log per namespace";
        cses / with_cses: bool @ 1, 1, "Commands Supported and Effects log";
        lpeds / with_lpeds: bool @ 2, 1, "Extended data for Get Log Page: 32-bit NUMD and LPO";
        ts / with_ts: bool @ 3, 1, "Telemetry logs";
        pes / with_pes: bool @ 4, 1, "Persistent Event log";
        mlps / with_mlps: bool @ 5, 1, "LIDs 00h, 05h, 12h and 13h (scopes and effects) are supported";
        da4s / with_da4s: bool @ 6, 1, "Telemetry Data Area 4";
    }
}

bits! {
    /// VWC of Identify Controller.
    pub struct WriteCache(u8) {
        present / with_present: bool @ 0, 1, "A volatile write cache is present";
        flush_behavior / with_flush_behavior: u8 @ 1, 2, "Flush with NSID FFFFFFFFh: 2 fails, 3 flushes all namespaces";
    }
}

bits! {
    /// SGLS of Identify Controller.
    pub struct SglSupport(u32) {
        support / with_support: u8 @ 0, 2, "0 none, 1 supported without alignment rules, 2 dword aligned";
        keyed / with_keyed: bool @ 2, 1, "Keyed SGL Data Block descriptor";
        sdt / with_sdt: u8 @ 8, 8, "SGL Descriptor Threshold";
        bit_bucket / with_bit_bucket: bool @ 16, 1, "Bit Bucket descriptor";
        mptr_contiguous / with_mptr_contiguous: bool @ 17, 1, "Byte aligned contiguous metadata buffer";
        oversize / with_oversize: bool @ 18, 1, "SGL longer than the data is allowed";
        mptr_sgl / with_mptr_sgl: bool @ 19, 1, "MPTR with an SGL descriptor";
        offset / with_offset: bool @ 20, 1, "Address field as an offset (in-capsule data)";
        transport / with_transport: bool @ 21, 1, "Transport SGL Data Block descriptor";
    }
}

wire! {
    /// Power State Descriptor (Base, Figure "Identify - Power State Descriptor Data Structure").
    pub struct PowerStateDescriptor[32] {
        /// Maximum Power, in centiwatts unless `mxps_nops` says otherwise.
        pub mp @ 0: U16,
        rsvd2 @ 2: u8,
        /// Max Power Scale (bit 0), Non-Operational State (bit 1).
        pub mxps_nops @ 3: u8,
        /// Entry Latency, microseconds.
        pub enlat_us @ 4: U32,
        /// Exit Latency, microseconds.
        pub exlat_us @ 8: U32,
        /// Relative Read Throughput.
        pub rrt @ 12: u8,
        /// Relative Read Latency.
        pub rrl @ 13: u8,
        /// Relative Write Throughput.
        pub rwt @ 14: u8,
        /// Relative Write Latency.
        pub rwl @ 15: u8,
        /// Idle Power.
        pub idlp @ 16: U16,
        /// Idle Power Scale.
        pub ips @ 18: u8,
        rsvd19 @ 19: u8,
        /// Active Power.
        pub actp @ 20: U16,
        /// Active Power Workload and Scale.
        pub apw_aps @ 22: u8,
        /// Emergency power fail times and scales, then reserved.
        pub tail @ 23: [u8; 9],
    }
}

wire! {
    /// NVM Command Set specific Identify Controller, CNS 06h and CSI 00h. Limits are log2 in units of
    /// CAP.MPSMIN pages; 0 is no limit.
    pub struct IdentifyControllerNvm[4096] {
        /// Verify Size Limit.
        pub vsl @ 0: u8,
        /// Write Zeroes Size Limit.
        pub wzsl @ 1: u8,
        /// Write Uncorrectable Size Limit.
        pub wusl @ 2: u8,
        /// Dataset Management Ranges Limit.
        pub dmrl @ 3: u8,
        /// Dataset Management Range Size Limit, blocks.
        pub dmrsl @ 4: U32,
        /// Dataset Management Size Limit, blocks.
        pub dmsl @ 8: U64,
        /// Key Per I/O Capabilities.
        pub kpiocap @ 16: u8,
        /// Write Zeroes With Deallocate Size Limit.
        pub wzdsl @ 17: u8,
        /// Admin Optional Command Support.
        pub aocs @ 18: U16,
        /// Version of the command set specification.
        pub ver @ 20: U32,
        /// LBA Migration Queue Format.
        pub lbamqf @ 24: u8,
        rsvd25 @ 25: [u8; 4071],
    }
}
