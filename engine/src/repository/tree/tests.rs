//! Round trips, sharing and damage of trees.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::ids::{Namer, Parts};

type Nodes = BTreeMap<ChunkId, Vec<u8>>;

fn file(path: &str) -> Entry {
    let id = ChunkId(crate::ids::digest(path.as_bytes()));
    Entry {
        path: path.into(),
        kind: EntryKind::File,
        mode: 0o600,
        owner: Owner::Name("postgres".into()),
        group: Owner::Name("postgres".into()),
        bytes: 8192,
        modified_ns: 1_795_000_000_123_456_789,
        flags: PAGES,
        target: Vec::new(),
        stored_bytes: 1000,
        content: Content::Extents(vec![Extent {
            length: 8192,
            id,
            parts: Parts::Whole,
        }]),
    }
}

fn relations(count: u32) -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..count)
        .map(|n| file(&format!("base/5/{}", 16_384 + n * 3)))
        .collect();
    entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
    entries
}

fn write(entries: &[Entry]) -> (ChunkId, NodeSums, Nodes) {
    let namer = Namer::plain();
    let mut nodes = Nodes::new();
    let mut writer = TreeWriter::new(&namer);
    let mut sink = |id: ChunkId, bytes: Vec<u8>| {
        // Children come first: whatever a node names is there already.
        if let Node::Inner(children) = decode_node(&bytes)? {
            assert!(children.iter().all(|child| nodes.contains_key(&child.id)));
        }
        assert!(bytes.len() <= LARGEST_NODE);
        nodes.insert(id, bytes);
        Ok::<(), TreeError>(())
    };
    for entry in entries {
        writer.push(entry, &mut sink).unwrap();
    }
    let (root, sums) = writer.finish(&mut sink).unwrap();
    (root, sums, nodes)
}

fn read(root: ChunkId, nodes: &Nodes) -> (Vec<Entry>, NodeSums) {
    match decode_node(&nodes[&root]).unwrap() {
        Node::Leaf(entries) => {
            let mut sums = NodeSums::default();
            for entry in &entries {
                sums.add(NodeSums::of(entry));
            }
            (entries, sums)
        }
        Node::Inner(children) => {
            let (mut all, mut total) = (Vec::new(), NodeSums::default());
            for child in children {
                let (entries, sums) = read(child.id, nodes);
                assert_eq!((&entries[0].path, sums), (&child.first_path, child.sums));
                all.extend(entries);
                total.add(sums);
            }
            (all, total)
        }
    }
}

fn leaves(nodes: &Nodes) -> BTreeSet<ChunkId> {
    let is_leaf = |bytes: &[u8]| matches!(decode_node(bytes), Ok(Node::Leaf(_)));
    nodes
        .iter()
        .filter(|(_, bytes)| is_leaf(bytes))
        .map(|(id, _)| *id)
        .collect()
}

#[test]
fn a_tree_comes_back_as_it_was_with_its_sums() {
    for count in [0, 1, 100, 5000, 40_000] {
        let entries = relations(count);
        let (root, sums, nodes) = write(&entries);
        assert_eq!(read(root, &nodes), (entries, sums));
        assert_eq!(sums.entries, u64::from(count));
        assert!(count < 5000 || leaves(&nodes).len() > 5);
    }
}

#[test]
fn a_tree_of_several_levels_comes_back_and_ends_in_one_root() {
    // Long paths that differ in front, so that few children fill an inner node.
    let entries: Vec<Entry> = (0..3000)
        .map(|n| file(&format!("{n:06}{}", "x".repeat(12_000))))
        .collect();
    for count in [1, 2, 21, 22, 3000] {
        let entries = &entries[..count];
        let (root, sums, nodes) = write(entries);
        assert_eq!(read(root, &nodes), (entries.to_vec(), sums));
        let (mut depth, mut at) = (0, root);
        while let Node::Inner(children) = decode_node(&nodes[&at]).unwrap() {
            assert!(depth > 0 || children.len() > 1, "a root with one child");
            (depth, at) = (depth + 1, children[0].id);
        }
        assert!(count < 3000 || depth >= 2, "{depth}");
    }
}

#[test]
fn nodes_have_about_48_kib_and_are_within_their_bounds() {
    let (_, _, nodes) = write(&relations(40_000));
    let sizes: Vec<usize> = leaves(&nodes).iter().map(|id| nodes[id].len()).collect();
    let average = sizes.iter().sum::<usize>() / sizes.len();
    assert!((24 << 10..96 << 10).contains(&average), "{average}");
    assert!(sizes.iter().all(|size| *size <= (256 << 10) + 600));
    assert!(
        sizes.iter().filter(|size| **size < 8 << 10).count() <= 1,
        "only the last may be smaller"
    );
}

#[test]
fn a_file_in_the_middle_changes_the_leaf_that_it_comes_into_and_no_other() {
    let before = relations(5000);
    let old = leaves(&write(&before).2);
    for at in (250..5000).step_by(500) {
        let mut after = before.clone();
        let neighbour = String::from_utf8_lossy(&before[at - 1].path).into_owned();
        after.insert(at, file(&format!("{neighbour}_fsm")));
        let new = leaves(&write(&after).2);
        assert_eq!(
            new.difference(&old).count(),
            1,
            "before entry {at}, of {} leaves",
            new.len()
        );
    }
}

#[test]
fn nine_tenths_of_the_leaves_are_shared_when_files_come_and_go() {
    let before = relations(40_000);
    let (old, mut after) = (leaves(&write(&before).2), before);
    for at in (0..4).map(|n| n * 10_000 + 5000) {
        after.remove(at);
        after.insert(
            at,
            file(&format!(
                "{}_vm",
                String::from_utf8_lossy(&after[at - 1].path)
            )),
        );
    }
    let new = leaves(&write(&after).2);
    let shared = new.intersection(&old).count();
    assert!(shared * 10 >= new.len() * 9, "{shared} of {}", new.len());
}

#[test]
fn a_changed_entry_changes_only_the_nodes_on_its_path() {
    let before = relations(40_000);
    let mut after = before.clone();
    after[20_000].mode = 0o640;
    let ((old_root, _, old), (root, _, new)) = (write(&before), write(&after));
    assert_ne!(old_root, root);
    let changed: Vec<&ChunkId> = new.keys().filter(|id| !old.contains_key(*id)).collect();
    let mut on_path = vec![root];
    while let Ok(Node::Inner(children)) = decode_node(&new[on_path.last().unwrap()]) {
        let holds = |child: &&Child| {
            compare_paths(&child.first_path, &after[20_000].path) != Ordering::Greater
        };
        on_path.push(children.iter().rev().find(holds).unwrap().id);
    }
    assert_eq!(
        changed.into_iter().collect::<BTreeSet<_>>(),
        on_path.iter().collect::<BTreeSet<_>>()
    );
}

#[test]
fn paths_are_ordered_by_components() {
    let ordered: [&[u8]; 9] = [
        b"", b"a", b"a/b", b"a/b/c", b"a/b!", b"a!", b"a!/x", b"a-b", b"b",
    ];
    for pair in ordered.windows(2) {
        assert_eq!(compare_paths(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        assert_eq!(
            compare_paths(pair[1], pair[0]),
            Ordering::Greater,
            "{pair:?}"
        );
        assert_eq!(compare_paths(pair[1], pair[1]), Ordering::Equal);
    }
}

#[test]
fn paths_that_lead_out_and_entries_out_of_order_are_refused() {
    let push = |paths: &[&str]| {
        let mut writer = TreeWriter::new(&Namer::plain());
        paths
            .iter()
            .try_for_each(|path| writer.push(&file(path), &mut |_, _| Ok::<(), TreeError>(())))
    };
    for path in [
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".",
        "a/./b",
        "a\0b",
        &"x".repeat(LONGEST_PATH + 1),
    ] {
        assert!(
            matches!(push(&[path]), Err(TreeError::Path { .. })),
            "{path:?}"
        );
    }
    assert!(matches!(push(&["b", "a"]), Err(TreeError::Order { .. })));
    assert!(matches!(push(&["a", "a"]), Err(TreeError::Order { .. })));
    assert_eq!(push(&["", "a", "a/b", "a-b"]), Ok(()));
}

#[test]
fn an_entry_whose_content_is_not_as_long_as_it_says_is_refused() {
    let spoilt = |change: &dyn Fn(&mut Entry)| {
        let mut entry = file("a");
        change(&mut entry);
        check_entry(&entry)
    };
    assert_eq!(spoilt(&|_| {}), Ok(()));
    assert!(spoilt(&|entry| entry.bytes += 1).is_err());
    assert!(spoilt(&|entry| entry.content = Content::Nothing).is_err());
    assert!(spoilt(&|entry| entry.kind = EntryKind::Directory).is_err());
    assert!(spoilt(&|entry| entry.flags = 0x80).is_err());
    assert!(spoilt(&|entry| entry.content = Content::Inline(vec![0; LARGEST_INLINE + 1])).is_err());
    let endless = NodeSpan {
        length: u64::MAX,
        id: ChunkId([0; 32]),
    };
    assert!(spoilt(&|entry| entry.content = Content::Nodes(vec![endless; 2])).is_err());
}

#[test]
fn a_newer_node_is_named_as_such() {
    let (root, _, nodes) = write(&relations(3));
    for (at, value) in [(0, 2), (1, 1), (4, 0x80)] {
        let mut bytes = nodes[&root].clone();
        bytes[at] = value;
        assert!(
            matches!(decode_node(&bytes), Err(TreeError::TooNew(_))),
            "byte {at}"
        );
    }
}

#[test]
fn a_node_cannot_be_made_to_fill_memory() {
    // One long path, and entries that each share all of it and add a byte.
    let paths: Vec<String> = (0..1000)
        .map(|n| format!("{}{n:06}", "d/".repeat(5000)))
        .collect();
    let entries: Vec<Entry> = paths.iter().map(|path| file(path)).collect();
    let (root, _, nodes) = write(&entries);
    assert_eq!(
        read(root, &nodes).0,
        entries,
        "the writer keeps to the bound that the reader sets"
    );
    assert!(leaves(&nodes).len() >= 2);
}

fn some_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        "[a-z]{0,8}".prop_map(Owner::Name),
        any::<u32>().prop_map(Owner::Number)
    ]
}

fn some_content() -> impl Strategy<Value = (u64, Content)> {
    let extent = (1u32.., 0u8..9, any::<bool>()).prop_map(|(length, id, zero)| Extent {
        length,
        id: ChunkId([id; 32]),
        parts: if zero { Parts::Zero } else { Parts::Whole },
    });
    let span = (1u64..1 << 40, any::<[u8; 32]>()).prop_map(|(length, id)| NodeSpan {
        length,
        id: ChunkId(id),
    });
    prop_oneof![
        Just((0, Content::Nothing)),
        prop::collection::vec(any::<u8>(), 0..=LARGEST_INLINE)
            .prop_map(|bytes| (bytes.len() as u64, Content::Inline(bytes))),
        prop::collection::vec(extent, 0..20).prop_map(|list| (
            list.iter().map(|e| u64::from(e.length)).sum(),
            Content::Extents(list)
        )),
        prop::collection::vec(span, 0..20)
            .prop_map(|list| (list.iter().map(|s| s.length).sum(), Content::Nodes(list))),
    ]
}

prop_compose! {
    fn some_entry()(
        parts in prop::collection::vec("[a-d!-]{1,3}", 0..4),
        owner in some_owner(),
        group in some_owner(),
        mode: u32,
        modified_ns: i64,
        flags in 0u8..8,
        target in "[a-z/]{0,20}",
        stored_bytes in 0u64..1 << 50,
        (bytes, content) in some_content(),
        link: bool,
    ) -> Entry {
        let kind = match content {
            Content::Nothing if link => EntryKind::Link,
            Content::Nothing => EntryKind::Directory,
            _ => EntryKind::File,
        };
        let path = parts.join("/").into_bytes();
        Entry {
            path, kind, mode, owner, group, bytes, modified_ns, flags, target: target.into_bytes(), stored_bytes, content,
        }
    }
}

fn some_entries() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(some_entry(), 0..60).prop_map(|mut entries| {
        entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        entries
    })
}

proptest! {
    #[test]
    fn any_entries_come_back_as_they_were(entries in some_entries()) {
        let (root, sums, nodes) = write(&entries);
        prop_assert_eq!(read(root, &nodes), (entries, sums));
    }

    #[test]
    fn path_order_is_the_order_of_component_lists(a in "[a!/]{0,6}", b in "[a!/]{0,6}") {
        let components = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        if check_path(a.as_bytes()).is_ok() && check_path(b.as_bytes()).is_ok() {
            prop_assert_eq!(compare_paths(a.as_bytes(), b.as_bytes()), components(&a).cmp(&components(&b)));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u8..4, noise in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(decode_node(&noise));
        let mut bytes = vec![1, 0, 0, 0, 0, kind];
        bytes.extend_from_slice(&noise);
        drop(decode_node(&bytes));
    }

    #[test]
    fn mutated_nodes_never_panic_and_what_is_decoded_is_sound(
        entries in some_entries(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
    ) {
        let (_, _, nodes) = write(&entries);
        for mut bytes in nodes.into_values() {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            drop(decode_node(&bytes[..cut.index(bytes.len())]));
            if let Ok(Node::Leaf(entries)) = decode_node(&bytes) {
                for pair in entries.windows(2) {
                    prop_assert_eq!(compare_paths(&pair[0].path, &pair[1].path), Ordering::Less);
                }
                prop_assert!(entries.iter().all(|entry| check_entry(entry).is_ok()));
            }
        }
    }
}
