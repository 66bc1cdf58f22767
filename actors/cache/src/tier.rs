//! The places where a KV block can lie, nearest first.

/// A storage tier of an engine's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// The accelerator's own memory.
    Gpu,
    /// Memory of the host.
    Cpu,
    /// A disk of the host.
    Disk,
    /// A file system or object store that several hosts share.
    Storage,
    /// A name that nobody here knows. It must weigh nothing in a score.
    Unknown,
}

impl Tier {
    /// Every tier, in order.
    pub const ALL: [Tier; 5] = [
        Tier::Gpu,
        Tier::Cpu,
        Tier::Disk,
        Tier::Storage,
        Tier::Unknown,
    ];

    /// The tier that an engine means by a `medium`. The case of letters does not matter; no name at all means the GPU.
    pub fn of_medium(medium: &str) -> Tier {
        const NAMES: [(&str, Tier); 14] = [
            ("", Tier::Gpu),
            ("GPU", Tier::Gpu),
            ("CPU", Tier::Cpu),
            ("CPU_PINNED", Tier::Cpu),
            ("CPU_TIER1", Tier::Cpu),
            ("CPU_TIER2", Tier::Cpu),
            ("DISK", Tier::Disk),
            ("NVME", Tier::Disk),
            ("STORAGE", Tier::Storage),
            ("FS", Tier::Storage),
            ("OBJ", Tier::Storage),
            ("SHARED_STORAGE", Tier::Storage),
            ("OBJECT_STORE", Tier::Storage),
            ("EXTERNAL", Tier::Storage),
        ];
        NAMES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(medium))
            .map_or(Tier::Unknown, |(_, tier)| *tier)
    }

    /// As in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Gpu => "gpu",
            Tier::Cpu => "cpu",
            Tier::Disk => "disk",
            Tier::Storage => "storage",
            Tier::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mediums_seen_in_the_wild() {
        assert_eq!(Tier::of_medium("cpu"), Tier::Cpu);
        assert_eq!(Tier::of_medium("CPU_PINNED"), Tier::Cpu);
        assert_eq!(Tier::of_medium("SHARED_STORAGE"), Tier::Storage);
        assert_eq!(Tier::of_medium(""), Tier::Gpu);
        assert_eq!(Tier::of_medium("lmcache-9"), Tier::Unknown);
    }
}
