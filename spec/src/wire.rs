//! The three forms in which this crate writes a standard's figures down.
//!
//! - `wire!`: a structure; `field @ offset: type`, with its size in brackets.
//! - `codes!`: an enumerated byte or word; unknown values stay representable.
//! - `bits!`: a register or bit field word with typed accessors.

/// A wire structure. Size and every offset are asserted; all-zero is its default.
macro_rules! wire {
    ($(#[$m:meta])* pub struct $name:ident [$size:literal] {
        $($(#[$fm:meta])* $fvis:vis $f:ident @ $off:literal : $t:ty),* $(,)?
    }) => {
        $(#[$m])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        #[allow(missing_docs, reason = "reserved fields are public only for `..default()` in literals")]
        pub struct $name { $($(#[$fm])* pub $f: $t),* }

        const _: () = assert!(size_of::<$name>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($name, $f) == $off);)*

        impl Default for $name {
            /// All fields zero.
            #[inline]
            fn default() -> Self {
                <Self as zerocopy::FromZeros>::new_zeroed()
            }
        }

        impl $name {
            /// Length of the structure, in bytes.
            pub const LEN: usize = $size;
        }
    };
}

/// An iSCSI header (RFC 7143, 11.2.1): what all headers have in common is not repeated. Fields of bytes 1 to 3; of 8 to 15;
/// of 20 to 23; and those behind the sequence numbers, which a `request` has one of and a `response` one more.
macro_rules! pdu {
    ($(#[$m:meta])* pub struct $name:ident: request {
        $($(#[$am:meta])* pub $a:ident @ $ao:literal : $at:ty),+;
        $($(#[$bm:meta])* pub $b:ident @ $bo:literal : $bt:ty),+;
        $($(#[$cm:meta])* pub $c:ident @ $co:literal : $ct:ty),+;
        $($(#[$dm:meta])* pub $d:ident @ $dof:literal : $dt:ty),+ $(,)?
    }) => {
        wire! {
            $(#[$m])*
            pub struct $name[48] {
                /// I bit and opcode.
                pub opcode @ 0: u8,
                $($(#[$am])* pub $a @ $ao: $at,)+
                /// TotalAHSLength, in words of 4 bytes.
                pub ahs_words @ 4: u8,
                /// DataSegmentLength.
                pub data_len @ 5: crate::iscsi::header::DataLen,
                $($(#[$bm])* pub $b @ $bo: $bt,)+
                /// Initiator Task Tag.
                pub itt @ 16: zerocopy::big_endian::U32,
                $($(#[$cm])* pub $c @ $co: $ct,)+
                /// CmdSN.
                pub cmd_sn @ 24: zerocopy::big_endian::U32,
                /// ExpStatSN.
                pub exp_stat_sn @ 28: zerocopy::big_endian::U32,
                $($(#[$dm])* pub $d @ $dof: $dt,)+
            }
        }
    };
    ($(#[$m:meta])* pub struct $name:ident: response {
        $($(#[$am:meta])* pub $a:ident @ $ao:literal : $at:ty),+;
        $($(#[$bm:meta])* pub $b:ident @ $bo:literal : $bt:ty),+;
        $($(#[$cm:meta])* pub $c:ident @ $co:literal : $ct:ty),+;
        $($(#[$dm:meta])* pub $d:ident @ $dof:literal : $dt:ty),+ $(,)?
    }) => {
        wire! {
            $(#[$m])*
            pub struct $name[48] {
                /// Opcode.
                pub opcode @ 0: u8,
                $($(#[$am])* pub $a @ $ao: $at,)+
                /// TotalAHSLength, in words of 4 bytes.
                pub ahs_words @ 4: u8,
                /// DataSegmentLength.
                pub data_len @ 5: crate::iscsi::header::DataLen,
                $($(#[$bm])* pub $b @ $bo: $bt,)+
                /// Initiator Task Tag; all ones where no request is answered.
                pub itt @ 16: zerocopy::big_endian::U32,
                $($(#[$cm])* pub $c @ $co: $ct,)+
                /// StatSN.
                pub stat_sn @ 24: zerocopy::big_endian::U32,
                /// ExpCmdSN.
                pub exp_cmd_sn @ 28: zerocopy::big_endian::U32,
                /// MaxCmdSN.
                pub max_cmd_sn @ 32: zerocopy::big_endian::U32,
                $($(#[$dm])* pub $d @ $dof: $dt,)+
            }
        }
    };
}

/// An enumerated value: named constants over an open integer, printed by name.
macro_rules! codes {
    ($(#[$m:meta])* pub struct $name:ident(u8) { $($c:ident = $v:literal, $text:literal;)* }) => {
        $(#[$m])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(transparent)]
        pub struct $name(pub u8);
        codes!(@impl $name, u8, $($c = $v, $text;)*);

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#04x}"), self.0)?;
                if let Some(name) = self.name() { write!(f, " {name}")?; }
                f.write_str(")")
            }
        }
    };
    ($(#[$m:meta])* pub struct $name:ident($t:ident) { $($c:ident = $v:literal, $text:literal;)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $t);
        codes!(@impl $name, $t, $($c = $v, $text;)*);

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#04x}"), self.0)?;
                if let Some(name) = self.name() { write!(f, " {name}")?; }
                f.write_str(")")
            }
        }
    };
    (@impl $name:ident, $t:ident, $($c:ident = $v:literal, $text:literal;)*) => {
        impl $name {
            $(#[doc = $text] pub const $c: Self = Self($v);)*

            /// Every value that the standard names, in its order.
            pub const ALL: &'static [Self] = &[$(Self::$c),*];

            /// The standard's name of the value, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($v => Some($text),)* _ => None }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#04x}", self.0),
                }
            }
        }
    };
}

/// A word of bit fields: `getter / setter: type @ lowest bit, width, "what"`.
macro_rules! bits {
    ($(#[$m:meta])* pub struct $name:ident($t:ident) {
        $($get:ident / $set:ident : $ft:ident @ $lo:literal, $width:literal, $text:literal;)*
    }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $t);

        impl $name {
            $(
                #[doc = $text]
                #[inline]
                #[must_use]
                pub fn $get(self) -> $ft {
                    <$ft as $crate::wire::BitField>::from_bits(
                        (u64::from(self.0) >> $lo) & $crate::wire::mask($width))
                }

                #[doc = concat!("With `", stringify!($get), "` set (bits beyond its width are dropped): ", $text)]
                #[inline]
                #[must_use]
                pub fn $set(self, value: $ft) -> Self {
                    let bits = $crate::wire::BitField::to_bits(value) & $crate::wire::mask($width);
                    let word = (u64::from(self.0) & !($crate::wire::mask($width) << $lo)) | (bits << $lo);
                    Self(<$t as $crate::wire::BitField>::from_bits(word))
                }
            )*
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("raw", &format_args!("{:#x}", self.0))
                    $(.field(stringify!($get), &self.$get()))*
                    .finish()
            }
        }
    };
}

/// The low `width` bits (1..=64).
pub(crate) const fn mask(width: u32) -> u64 {
    u64::MAX >> (64 - width)
}

/// A type that a bit field can be read as.
pub(crate) trait BitField: Copy {
    fn from_bits(bits: u64) -> Self;
    fn to_bits(self) -> u64;
}

impl BitField for bool {
    #[inline]
    fn from_bits(bits: u64) -> Self {
        bits != 0
    }
    #[inline]
    fn to_bits(self) -> u64 {
        u64::from(self)
    }
}

macro_rules! int_field {
    ($($t:ident),*) => {$(
        impl BitField for $t {
            #[inline]
            #[allow(clippy::cast_possible_truncation, reason = "the caller masked the bits to the field's width")]
            fn from_bits(bits: u64) -> Self {
                bits as $t
            }
            #[inline]
            fn to_bits(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}
int_field!(u8, u16, u32, u64);
