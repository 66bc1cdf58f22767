use proptest::prelude::*;

use super::*;
use crate::state::tests::fixtures::*;
use quorate_proto::v1::Kind;

const CONTROL: Expected<'_> = Expected {
    cluster_id: Some("c1"),
    group: "control",
};

/// A state with a record of each type.
fn state() -> ControlState {
    let mut state = ControlState::default();
    let commands = [
        init("c1", "n1"),
        register("n2", "i2", "r2"),
        remove(4),
        put(pool("p")),
        keyed("k1", put(endpoint("e", "p", "r1"))),
        keyed("k2", put(setting("s", "[1, 2]"))),
        keyed("k3", delete(Kind::Endpoint, "e")),
    ];
    let count = commands.len();
    let applied = state.apply(1, &batch(commands)).unwrap();
    assert!(
        applied
            .replies
            .iter()
            .all(|r| matches!(r, crate::state::Reply::Applied { .. })),
        "{applied:?}"
    );
    assert_eq!(applied.replies.len(), count);
    state
}

fn written(state: &ControlState) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = write_state(
        &mut bytes,
        &header("c1", "control", 17, 3, b"membership"),
        state,
    )
    .unwrap();
    assert_eq!(length, bytes.len() as u64);
    bytes
}

#[test]
fn what_was_written_is_read() {
    let state = state();
    let bytes = written(&state);
    let (header, read) = read_state(&*bytes, CONTROL).unwrap();
    assert_eq!(
        (header.applied_index, header.applied_term, &*header.meta),
        (17, 3, &b"membership"[..])
    );
    assert_eq!(written(&read), bytes);
    assert_eq!(
        (read.revision(), read.cluster_id()),
        (state.revision(), "c1")
    );
}

#[test]
fn a_flip_of_any_bit_is_noticed() {
    let bytes = written(&state());
    for i in 0..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[i] ^= 1 << bit;
            assert!(
                read_state(&*broken, CONTROL).is_err(),
                "bit {bit} of byte {i}"
            );
        }
    }
}

#[test]
fn a_cut_at_any_length_is_named_torn() {
    let bytes = written(&state());
    for length in 0..bytes.len() {
        match read_state(&bytes[..length], CONTROL) {
            Err(SnapshotError::Torn { offset }) => assert_eq!(offset, length as u64),
            other => panic!("{length}: {other:?}"),
        }
    }
    let longer = [&*bytes, b"x"].concat();
    assert!(matches!(
        read_state(&*longer, CONTROL),
        Err(SnapshotError::Corrupt(_))
    ));
}

/// Where each frame begins, and where the last one ends.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![PREAMBLE];
    while let Some(&start) = starts.last().filter(|start| **start < bytes.len()) {
        let length = u32::from_le_bytes(bytes[start + 1..start + 5].try_into().unwrap());
        starts.push(start + FRAME_HEAD + length as usize);
    }
    starts
}

#[test]
fn lost_repeated_and_swapped_frames_are_noticed() {
    let bytes = written(&state());
    let starts = frames(&bytes);
    let frame = |i: usize| &bytes[starts[i]..starts[i + 1]];
    let count = starts.len() - 1;
    for i in 1..count - 1 {
        let (before, after) = (&bytes[..starts[i]], &bytes[starts[i + 1]..]);
        let lost = [before, after].concat();
        let repeated = [before, frame(i), frame(i), after].concat();
        assert!(read_state(&*lost, CONTROL).is_err(), "frame {i} lost");
        assert!(
            read_state(&*repeated, CONTROL).is_err(),
            "frame {i} repeated"
        );
        if i + 1 < count - 1 {
            let swapped = [before, frame(i + 1), frame(i), &bytes[starts[i + 2]..]].concat();
            assert!(
                read_state(&*swapped, CONTROL).is_err(),
                "frames {i} and {} swapped",
                i + 1
            );
        }
    }
}

#[test]
fn a_damaged_frame_is_named_by_its_place() {
    let bytes = written(&state());
    let start = frames(&bytes)[2];
    let mut broken = bytes.clone();
    broken[start + FRAME_HEAD] ^= 1;
    match read_state(&*broken, CONTROL) {
        Err(SnapshotError::CorruptFrame { offset, .. }) => assert_eq!(offset, start as u64),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_from_elsewhere_is_refused() {
    let bytes = written(&state());
    let other_cluster = Expected {
        cluster_id: Some("c2"),
        ..CONTROL
    };
    assert!(matches!(
        read_state(&*bytes, other_cluster),
        Err(SnapshotError::OtherCluster { .. })
    ));
    let other_group = Expected {
        group: "cache",
        ..CONTROL
    };
    assert!(matches!(
        read_state(&*bytes, other_group),
        Err(SnapshotError::OtherGroup { .. })
    ));
    assert!(
        read_state(
            &*bytes,
            Expected {
                cluster_id: None,
                ..CONTROL
            }
        )
        .is_ok()
    );
    assert!(matches!(
        read_state(&b"{\"json\": true}"[..], CONTROL),
        Err(SnapshotError::NotASnapshot)
    ));

    let mut lying = Vec::new();
    write_state(&mut lying, &header("c2", "control", 1, 1, &[]), &state()).unwrap();
    assert!(matches!(
        read_state(&*lying, other_cluster),
        Err(SnapshotError::Invalid { .. })
    ));
}

#[test]
fn a_newer_schema_is_named() {
    let mut bytes = Vec::new();
    let newer = SnapshotHeader {
        schema: SCHEMA + 1,
        ..header("c1", "control", 1, 1, &[])
    };
    write_state(&mut bytes, &newer, &state()).unwrap();
    let error = read_state(&*bytes, CONTROL).unwrap_err();
    assert!(matches!(
        error,
        SnapshotError::NewerSchema { found, known: SCHEMA } if found == SCHEMA + 1
    ));
    // What an operator reads who runs an older build beside a newer one.
    let said = error.to_string();
    for part in [
        format!("newer schema ({})", SCHEMA + 1),
        format!("knows ({SCHEMA})"),
        "run a newer build".to_owned(),
    ] {
        assert!(said.contains(&part), "{said}");
    }
    let mut bytes = written(&state());
    bytes[MAGIC.len()] = 9;
    assert!(matches!(
        read_state(&*bytes, CONTROL),
        Err(SnapshotError::NewerSchema {
            found: 9,
            known: FORMAT
        })
    ));
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.snap");
    let state = state();
    let header = header("c1", "control", 17, 3, &[]);
    let length = write_file(&path, &header, &state).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    assert_eq!(read_header(&path, CONTROL).unwrap(), header);
    assert_eq!(
        read_file(&path, CONTROL).unwrap().1.revision(),
        state.revision()
    );
    let names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(names, ["control.snap"], "no temporary file is left");

    let nowhere = directory.path().join("missing").join("control.snap");
    let error = write_file(&nowhere, &header, &state)
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing/control.snap"), "{error}");
    std::fs::write(&path, b"QRTSNAP").unwrap();
    let error = read_file(&path, CONTROL).unwrap_err().to_string();
    assert!(error.contains("control.snap: torn snapshot"), "{error}");
}

#[test]
fn a_disk_that_fills_up_is_an_error() {
    /// Takes so many bytes and then fails.
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(taken)
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let state = state();
    let length = written(&state).len();
    let header = header("c1", "control", 17, 3, b"membership");
    for space in 0..length {
        assert!(matches!(
            write_state(Full(space), &header, &state),
            Err(SnapshotError::Io(_))
        ));
    }
    assert!(write_state(Full(length), &header, &state).is_ok());
}

proptest! {
    /// Whatever a network or a disk makes of a snapshot, reading ends with an error and without a panic.
    #[test]
    fn damage_is_never_accepted(
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let bytes = written(&state());
        let mut broken = bytes.clone();
        for (place, byte) in &patches {
            *place.get_mut(&mut broken) = *byte;
        }
        if let Some(cut) = cut {
            broken.truncate(cut.index(bytes.len()));
        }
        prop_assert_eq!(read_state(&*broken, CONTROL).is_ok(), broken == bytes);
    }
}
