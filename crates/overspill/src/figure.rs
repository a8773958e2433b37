//! The figures that are read back, each with its name and what it says, in one place: what
//! tables, JSON, metrics and documentation call them and tell of them comes from here.

/// A figure of a `T`, for whoever shows all of them.
#[derive(Debug, Clone, Copy)]
pub struct Figure<T> {
    /// Its name in the kernel's maps, in JSON, and in metrics.
    pub name: &'static str,
    /// What it says, as sentences.
    pub about: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// Reads it; `None` where it is not known.
    pub read: fn(&T) -> Option<u64>,
}

/// What a figure does as time goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It only grows, from the making of its service, or of its network namespace's first.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A figure's value, of whatever type its field has.
pub(crate) trait Reading {
    fn reading(self) -> Option<u64>;
}

impl Reading for u16 {
    fn reading(self) -> Option<u64> {
        Some(self.into())
    }
}

impl Reading for u32 {
    fn reading(self) -> Option<u64> {
        Some(self.into())
    }
}

impl Reading for u64 {
    fn reading(self) -> Option<u64> {
        Some(self)
    }
}

impl Reading for Option<u32> {
    fn reading(self) -> Option<u64> {
        self.map(u64::from)
    }
}

/// A structure with figures: its own fields, then gauges and counters, whose descriptions
/// are their documentation as well.
macro_rules! figures {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $($(#[$field_attribute:meta])* pub $field:ident: $type:ty,)*
        }
        $(gauges { $($gauge:ident: $gauge_type:ty = $about_gauge:literal,)* })?
        counters { $($counter:ident = $about_counter:literal,)* }
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $type,)*
            $($(#[doc = $about_gauge] pub $gauge: $gauge_type,)*)?
            $(#[doc = $about_counter] pub $counter: u64,)*
        }

        impl $name {
            /// All its figures, in the order of the fields.
            pub const FIGURES: &[$crate::figure::Figure<Self>] = &[
                $($($crate::figure::Figure {
                    name: stringify!($gauge),
                    about: $about_gauge,
                    kind: $crate::figure::Kind::Gauge,
                    read: |of| $crate::figure::Reading::reading(of.$gauge),
                },)*)?
                $($crate::figure::Figure {
                    name: stringify!($counter),
                    about: $about_counter,
                    kind: $crate::figure::Kind::Counter,
                    read: |of| Some(of.$counter),
                },)*
            ];
        }
    };
}

pub(crate) use figures;
