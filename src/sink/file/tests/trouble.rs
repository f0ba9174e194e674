//! Full disks, damaged files and paths that cannot be: who is stopped by them, and who is not.

use super::*;

#[tokio::test]
async fn one_file_that_cannot_be_compressed_keeps_no_other_from_going() {
    let place = Place::new();
    let (sink, _) = place.sink("rotate_every = 'day'\ncompress = 'zstd'\nkeep = '10d'");
    for day in ["01", "20", "21"] {
        let name = format!("audit-202611{day}T000000Z.jsonl");
        std::fs::write(place.path(&name), "{\"id\":\"old\"}\n").unwrap();
    }
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst.tmp"), "ha").unwrap();
    // What is in the place of the compressed file cannot be replaced by it.
    let in_the_way = place.path("audit-20261120T000000Z.jsonl.zst/x");
    std::fs::create_dir_all(in_the_way).unwrap();
    assert_eq!(send(&sink, &["i-1"]).await, [sent()]);
    assert_eq!(
        place.names(),
        [
            "audit-20261120T000000Z.jsonl",
            "audit-20261120T000000Z.jsonl.zst",
            "audit-20261121T000000Z.jsonl.zst",
            "audit.jsonl"
        ]
    );
}

#[tokio::test]
async fn a_damaged_older_file_keeps_no_line_from_being_written() {
    let place = Place::new();
    let (sink, _) = place.sink("rotate_every = 'day'\ncompress = 'zstd'");
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst"), "half").unwrap();
    let mut again = notice("i-1");
    again.marks.possible_repeat = true;
    assert_eq!(sink.send(&[again]).await, [sent()]);
    assert_eq!(place.ids("audit.jsonl"), [id("i-1")]);
}
