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
