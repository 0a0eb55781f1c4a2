//! What lies on the disks, found by reading their files: where every structure has its bytes.

use basalt_engine::body::BlockRow;
use basalt_engine::body::directory::{DirectoryChunk, Origin};
use basalt_engine::extent::{Column, ExtentClass, Placement};
use basalt_engine::format::batch::BatchHeader;
use basalt_engine::format::frame::FRAME_HEADER_LEN;
use basalt_engine::format::manifest::Manifest;
use basalt_engine::format::record::Record;
use basalt_engine::format::root::{ROOT_COPY_LEN, Root};
use basalt_engine::index::{IndexManifest, TableDescriptor};
use basalt_reactor::sim::DiskHandle;

use crate::cluster::Layout;

pub(crate) const BLOCK_LEN: usize = 4096;

/// All files of all disks, as reads see them.
pub(crate) struct Snapshot(Vec<Vec<(String, Vec<u8>)>>);

impl Snapshot {
    pub(crate) fn take(disks: &[DiskHandle]) -> Snapshot {
        let of = |disk: &DiskHandle| {
            let bytes = |file: &String| disk.read(file, 0, disk.file_len(file).unwrap_or(0) as usize);
            disk.files().into_iter().map(|file| (file.clone(), bytes(&file))).collect()
        };
        Snapshot(disks.iter().map(of).collect())
    }

    pub(crate) fn file(&self, disk: usize, name: &str) -> &[u8] {
        let found = self.0[disk].iter().find(|(file, _)| file == name);
        found.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default()
    }

    /// Files of this kind are what they were.
    pub(crate) fn assert_same(&self, disks: &[DiskHandle], kind: &str) {
        for (disk, files) in disks.iter().zip(&self.0) {
            for (file, before) in files.iter().filter(|(file, _)| file.ends_with(kind)) {
                let now = disk.read(file, 0, before.len());
                let changed = before.chunks(BLOCK_LEN).zip(now.chunks(BLOCK_LEN)).position(|(a, b)| a != b);
                assert_eq!(changed, None, "{} {file}: a block differs", disk.name());
            }
        }
    }
}

/// A structure with a copy, or a column, on several disks.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    pub(crate) kind: &'static str,
    pub(crate) file: String,
    /// For each copy the disk, and where its bytes begin in the file.
    pub(crate) places: Vec<(usize, u64)>,
    pub(crate) len: u64,
    /// The table it belongs to, if it is of one.
    pub(crate) table: Option<u64>,
}

fn file(shard: u16, kind: &str) -> String {
    format!("shard-{shard:04}.{kind}")
}

fn places(layout: Layout, class: ExtentClass, columns: &[Column], offset: u64) -> Vec<(usize, u64)> {
    let slot_len = layout.geometry().slot_len(class);
    let place = |column: &Column| (usize::from(column.disk.0), u64::from(column.slot) * slot_len + offset);
    columns.iter().map(place).collect()
}

/// Every row of a stripe, and every directory chunk.
pub(crate) fn data(layout: Layout, snapshot: &Snapshot, secret: [u8; 16]) -> Vec<Structure> {
    let mut found: Vec<Structure> = Vec::new();
    for (shard, chunk) in chunks(layout, snapshot, secret) {
        let of = |kind, offset, len| Structure {
            kind,
            file: file(shard, "data"),
            places: places(layout, ExtentClass::Data, &chunk.placement.columns, offset),
            len,
            table: None,
        };
        for (_, row) in rows(layout, &chunk) {
            found.push(of("row", row.offset, row.len.into()));
        }
        // As long as its frame says: no checksum covers the padding.
        let at = u64::from(chunk.block) * BLOCK_LEN as u64;
        let (disk, start) = places(layout, ExtentClass::Data, &chunk.placement.columns, at)[0];
        let frame = &snapshot.file(disk, &file(shard, "data"))[start as usize..][..FRAME_HEADER_LEN];
        let payload_len = u32::from_le_bytes(frame[12..16].try_into().expect("4 bytes"));
        found.push(of("chunk", at, FRAME_HEADER_LEN as u64 + u64::from(payload_len)));
    }
    found
}

/// What lies in data extents, found as a stranger would: by looking at every block.
fn chunks(layout: Layout, snapshot: &Snapshot, secret: [u8; 16]) -> Vec<(u16, DirectoryChunk)> {
    let mut found: Vec<(u16, DirectoryChunk)> = Vec::new();
    for shard in 0..layout.shards {
        let origin = Origin { shard, epoch: 0, secret };
        for disk in 0..layout.disk_count() {
            let bytes = snapshot.file(disk, &file(shard, "data"));
            for at in (0..bytes.len()).step_by(BLOCK_LEN) {
                let Ok(chunk) = DirectoryChunk::decode(&bytes[at..], &origin) else { continue };
                if found.iter().all(|(_, known)| *known != chunk) {
                    found.push((shard, chunk));
                }
            }
        }
    }
    found
}

fn rows(layout: Layout, chunk: &DirectoryChunk) -> Vec<(Placement, BlockRow)> {
    let geometry = layout.geometry();
    let of_entry = |entry| BlockRow::of_entry(chunk.placement.id, entry, &geometry);
    chunk.entries.iter().flat_map(of_entry).map(|row| (chunk.placement.clone(), row)).collect()
}

/// The newest root of a shard, its manifest, and the tables that this names.
pub(crate) fn root_of(
    layout: Layout,
    snapshot: &Snapshot,
    shard: u16,
) -> (Root, Manifest, Vec<TableDescriptor>) {
    let copies = (0..layout.disk_count()).flat_map(|disk| {
        let bytes = snapshot.file(disk, &file(shard, "root"));
        bytes.chunks(ROOT_COPY_LEN).filter_map(|copy| Root::decode(copy).ok()).collect::<Vec<_>>()
    });
    let root = copies.max_by_key(|root| root.sequence).expect("some copy is whole");
    let replica = |replica: usize| {
        let mut bytes = Vec::new();
        for placement in &root.manifest {
            let at = places(layout, ExtentClass::Table, &placement.columns, 0)[replica];
            let slot_len = layout.geometry().table_slot_len as usize;
            let len = slot_len.min(root.manifest_len as usize - bytes.len());
            bytes.extend_from_slice(&snapshot.file(at.0, &file(shard, "table"))[at.1 as usize..][..len]);
        }
        Manifest::decode(&bytes).ok()
    };
    let manifest = (0..usize::from(layout.m) + 1).find_map(replica).expect("some replica is whole");
    let index = IndexManifest::decode(&manifest.index).expect("it is whole");
    (root, manifest, index.levels.into_iter().flatten().collect())
}

/// Root copies, the manifest, and every frame of every table.
pub(crate) fn index(layout: Layout, snapshot: &Snapshot) -> Vec<Structure> {
    let mut found = Vec::new();
    for shard in 0..layout.shards {
        let (root, _, tables) = root_of(layout, snapshot, shard);
        for copy in 0..2 {
            let places = layout.home_of(shard).map(|disk| (disk, copy * ROOT_COPY_LEN as u64)).collect();
            let len = ROOT_COPY_LEN as u64;
            found.push(Structure { kind: "root", file: file(shard, "root"), places, len, table: None });
        }
        let of = |kind, placement: &Placement, offset, len, table| Structure {
            kind,
            file: file(shard, "table"),
            places: places(layout, ExtentClass::Table, &placement.columns, offset),
            len,
            table,
        };
        found.push(of("manifest", &root.manifest[0], 0, root.manifest_len, None));
        for table in &tables {
            let first = places(layout, ExtentClass::Table, &table.placement.columns, 0)[0];
            let bytes =
                &snapshot.file(first.0, &file(shard, "table"))[first.1 as usize..][..table.len as usize];
            for at in (0..bytes.len()).step_by(BLOCK_LEN) {
                let kind = match &bytes[at..at + 8] {
                    b"BSLTTABL" => "table header",
                    b"BSLTTDAT" => "table data",
                    b"BSLTTFLT" => "table filter",
                    b"BSLTTDIR" => "table directory",
                    _ => continue,
                };
                let payload_len = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().expect("4 bytes"));
                let len = 32 + u64::from(payload_len);
                found.push(of(kind, &table.placement, at as u64, len, Some(table.placement.id.0)));
            }
        }
    }
    found
}

/// Headers of the log extents in which bodies of objects lie, and the batches that hold these.
pub(crate) fn log(layout: Layout, snapshot: &Snapshot) -> Vec<Structure> {
    let mut found = Vec::new();
    for shard in 0..layout.shards {
        let (_, manifest, _) = root_of(layout, snapshot, shard);
        for entry in manifest.extents.iter().filter(|entry| entry.placement.class == ExtentClass::Log) {
            let of = |kind, offset: usize, len: usize| Structure {
                kind,
                file: file(shard, "log"),
                places: places(layout, ExtentClass::Log, &entry.placement.columns, offset as u64),
                len: len as u64,
                table: None,
            };
            let (disk, start) = places(layout, ExtentClass::Log, &entry.placement.columns, 0)[0];
            let slot_len = layout.geometry().log_slot_len as usize;
            let bytes = &snapshot.file(disk, &file(shard, "log"))[start as usize..][..slot_len];
            let mut with_bodies = 0;
            for at in (BLOCK_LEN..slot_len).step_by(BLOCK_LEN) {
                let Ok(header) = BatchHeader::decode(&bytes[at..]) else { continue };
                if header.nonce != entry.nonce {
                    continue;
                }
                let Ok(records) = header.decode_records(&bytes[at..]) else { continue };
                let is_body = |record: &Record| matches!(record, Record::Put { inline: Some(span), .. } if span.len > 0);
                if records.iter().any(is_body) {
                    with_bodies += 1;
                    let len = header.payload_offset() + header.payload_len as usize;
                    found.push(of("batch", at, len));
                }
            }
            if with_bodies > 0 {
                // Frame and fields: no checksum covers the padding.
                found.push(of("log header", 0, FRAME_HEADER_LEN + 50));
            }
        }
    }
    found
}
