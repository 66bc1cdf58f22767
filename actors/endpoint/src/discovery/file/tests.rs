//! Both formats, and files that people break.

use super::*;
use proptest::prelude::*;
use std::io::Write;

fn urls(answer: &Answer) -> Vec<(&str, &str, Option<u32>)> {
    answer
        .found
        .iter()
        .map(|(n, f)| (n.as_str(), f.url.as_str(), f.rank))
        .collect()
}

fn ok(text: &str, ports: &[u32]) -> Answer {
    parse(text.as_bytes(), ports).unwrap()
}

#[test]
fn both_formats_in_yaml_and_json() {
    let yaml = r#"
# our fleet
endpoints:
- name: gpu-1
  url: http://gpu-1.example.org:8000
  engine: sglang
  labels: {tier: a, gen: 3}
- name: gpu-2
  namespace: default
  address: 10.0.0.2
  port: "8000"
- {name: gpu-3, namespace: prod, address: "fd00::3", port: 8001}
"#;
    let a = ok(yaml, &[]);
    assert_eq!(a.problems, Vec::<String>::new());
    assert_eq!(
        urls(&a),
        [
            ("gpu-1", "http://gpu-1.example.org:8000", None),
            ("gpu-2", "http://10.0.0.2:8000", None),
            ("prod.gpu-3", "http://[fd00::3]:8001", None),
        ]
    );
    assert_eq!(a.found["gpu-1"].engine, Engine::Sglang);
    assert_eq!(a.found["gpu-1"].labels["gen"], "3");
    let json = r#"{"endpoints": [{"name": "e", "address": "10.0.0.1", "port": "80", "labels": {"app": "x"}}]}"#;
    assert_eq!(urls(&ok(json, &[])), [("e", "http://10.0.0.1:80", None)]);
    assert_eq!(
        urls(&ok("- {name: e, url: 'http://h:1'}", &[])),
        [("e", "http://h:1", None)]
    );
    assert!(ok("endpoints: []", &[]).found.is_empty());
}

#[test]
fn target_ports_make_one_endpoint_for_each_rank() {
    let text = "endpoints: [{name: e, address: h}]";
    assert_eq!(
        urls(&ok(text, &[8000, 8001])),
        [
            ("e-rank-0", "http://h:8000", Some(0)),
            ("e-rank-1", "http://h:8001", Some(1))
        ]
    );
    assert_eq!(urls(&ok(text, &[8000])), [("e", "http://h:8000", None)]);
}

#[test]
fn bad_entries_are_named_and_the_rest_is_used() {
    let text = r"endpoints:
- name: good
  url: http://h:1
- name: Bad_Name
  url: http://h:2
- name: no-address
- url: http://h:3
- just text
- name: port
  address: h
  port: eighty
- name: both
  url: http://h:1
  address: h
- name: good
  url: http://h:9
- name: typo
  url: http://h:5
  lables: {a: b}
- name: nested
  url: http://h:6
  labels: {a: [1]}
";
    let a = ok(text, &[]);
    assert_eq!(
        urls(&a),
        [("good", "http://h:1", None), ("typo", "http://h:5", None)]
    );
    let expected = [
        ("line 4:", "\"Bad_Name\""),
        ("line 6:", "\"no-address\": it has neither"),
        ("line 7:", "no name"),
        ("line 8:", "must be a map"),
        ("line 9:", "\"port\""),
        ("line 12:", "both url and address"),
        ("line 15:", "listed twice"),
        ("line 17:", "unknown key \"lables\""),
        ("line 20:", "label \"a\""),
    ];
    assert_eq!(a.problems.len(), expected.len(), "{:#?}", a.problems);
    for (problem, (line, what)) in a.problems.iter().zip(expected) {
        assert!(
            problem.starts_with(line) && problem.contains(what),
            "{problem:?} should have {line} {what}"
        );
    }
}

#[test]
fn bad_files_are_errors_with_a_line() {
    for (text, what) in [
        ("endpoints:\n- name: [", "line"),
        ("endpoints: 5", "line 1"),
        ("hosts: []", "endpoints"),
        ("", "line 1"),
        ("endpoints:\n- {name: a\n- {name: b}", "line"),
    ] {
        let e = parse(text.as_bytes(), &[]).unwrap_err();
        assert!(e.contains(what), "{text:?}: {e}");
    }
    assert!(parse(b"\xff\xfe", &[]).unwrap_err().contains("UTF-8"));
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_errors_do_not_stick() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    let mut source = FileSource::new(path.clone(), vec![]);
    assert!(source.look().await.unwrap_err().contains("endpoints.yaml"));
    let write = |text: &str| {
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    write("- {name: a, url: 'http://h:1'}");
    assert_eq!(
        urls(&source.look().await.unwrap()),
        [("a", "http://h:1", None)]
    );
    // The same length within the same second.
    write("- {name: b, url: 'http://h:1'}");
    assert_eq!(
        urls(&source.look().await.unwrap()),
        [("b", "http://h:1", None)]
    );
    write("- {name: b, url: ");
    assert!(source.look().await.is_err());
    write("- {name: b, url: 'http://h:1'}");
    assert_eq!(source.look().await.unwrap().found.len(), 1);
    let mut not_a_file = FileSource::new(dir.path().into(), vec![]);
    assert!(not_a_file.look().await.is_err());
}

proptest! {
    #[test]
    fn garbage_never_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&text, &[1]);
    }
}
