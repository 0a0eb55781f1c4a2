//! Each structure as JSON. Field names are those of docs/DATA_FORMAT.md; ids and hashes are hexadecimal, names are text with
//! what is not UTF-8 replaced, and a structure that cannot be believed has `defect` instead of its fields.

use std::ops::Range;

use basalt_engine::body::directory::{DirectoryChunk, DirectoryEntry};
use basalt_engine::extent::groups::GroupRole;
use basalt_engine::extent::members::MemberState;
use basalt_engine::extent::{ExtentClass, Placement};
use basalt_engine::format::batch::BatchHeader;
use basalt_engine::format::log_header::LogHeader;
use basalt_engine::format::manifest::{ExtentEntry, Manifest};
use basalt_engine::format::pack::PackItem;
use basalt_engine::format::part_list::PartSpan;
use basalt_engine::format::record::{LiveDelta, Record};
use basalt_engine::format::root::Root;
use basalt_engine::format::superblock::{DiskClass, State, Superblock};
use basalt_engine::index::key::Key;
use basalt_engine::index::{IndexManifest, TableDescriptor};
use basalt_engine::offline::Defect;
use basalt_engine::offline::inspect::{Item, Place, TableSummary};
use basalt_engine::value::{
    self, Body, Bucket, Checksum, Footprint, Object, Part, PartBody, Striped, Upload, UploadState,
    UploadedPart,
};
use basalt_engine::{ScrubMark, ScrubProgress};
use serde_json::{Map, Value, json};

/// One structure.
pub(super) fn of(item: &Item) -> Value {
    match item {
        Item::Stranger { path, reason } => {
            json!({ "structure": "disk", "path": path.display().to_string(), "defect": reason })
        }
        Item::Missing { disk } => json!({ "structure": "disk", "disk": disk.0, "missing": true }),
        Item::Superblock { path, copy, found } => {
            let head = json!({ "structure": "superblock", "path": path.display().to_string(), "copy": copy });
            with(head, found.as_deref(), superblock)
        }
        Item::Root { place, shard, copy, found } => {
            let head = at("root", place, json!({ "shard": shard, "copy": copy }));
            with(head, found.as_deref(), root)
        }
        Item::ShardLost { shard, defect } => {
            json!({ "structure": "shard", "shard": shard, "defect": defect.to_string() })
        }
        Item::ManifestReplica { place, shard, extent, len, defect } => {
            let more = json!({ "shard": shard, "extent": extent.0, "len": len });
            defective(at("manifest replica", place, more), defect.as_ref())
        }
        Item::Manifest { shard, manifest, index } => manifest_of(*shard, manifest, index),
        Item::LogEnd { shard, batches, defects } => {
            let head = json!({ "structure": "log end", "shard": shard, "batches_behind_root": batches });
            if defects.is_empty() { head } else { join(head, json!({ "defects": defects })) }
        }
        Item::Extent { shard, entry } => {
            join(json!({ "structure": "extent", "shard": shard }), extent_entry(entry))
        }
        Item::LogHeader { place, shard, extent, found } => {
            let head = at("log header", place, json!({ "shard": shard, "extent": extent.0 }));
            with(head, found.as_ref(), log_header)
        }
        Item::Batch { place, shard, header, records } => {
            let head = join(at("batch", place, json!({ "shard": shard })), batch_header(header));
            with(
                head,
                records.as_ref(),
                |records| json!({ "records": records.iter().map(record).collect::<Vec<_>>() }),
            )
        }
        Item::Unreadable { place, len, defect } => {
            defective(at("block", place, json!({ "len": len })), Some(defect))
        }
        Item::Table { shard, level, table } => {
            join(json!({ "structure": "table", "shard": shard, "level": level }), table_summary(table))
        }
        Item::TableLost { shard, extent, offset, len, defect } => json!({
            "structure": "lost table frame", "shard": shard, "extent": extent.0, "offset_in_extent": offset, "len": len,
            "defect": defect.to_string(),
        }),
        Item::TableFrame { place, shard, extent, kind, len, defect } => {
            let more = json!({ "shard": shard, "extent": extent.0, "kind": kind, "len": len });
            defective(at("table frame", place, more), defect.as_ref())
        }
        Item::Entry { shard, key: of, value } => {
            let head = json!({ "structure": "entry", "shard": shard });
            match value {
                Some(value) => join(head, entry(of, value)),
                None => join(head, json!({ "key": key(of), "deleted": true })),
            }
        }
        Item::Chunk { place, shard, extent, found } => {
            let head = at("directory chunk", place, json!({ "shard": shard, "extent": extent.0 }));
            with(head, found.as_deref(), chunk)
        }
        Item::Pack { shard, placement: place, entry, lost, objects } => {
            let head = json!({ "structure": "pack", "shard": shard });
            pack(join(head, placement(place)), entry, lost, objects)
        }
        Item::NoSuchBucket => json!({ "structure": "object", "defect": "there is no such bucket" }),
        Item::NoSuchKey => json!({ "structure": "object", "defect": "there is no such key in the bucket" }),
        Item::Object { shard, key, value, places } => {
            let head = json!({ "structure": "object", "shard": shard });
            let places = json!({ "extents": places.iter().map(placement).collect::<Vec<_>>() });
            join(join(head, entry(key, value)), places)
        }
    }
}

fn join(mut head: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut head, more) {
        fields.extend(more);
    }
    head
}

fn at(structure: &str, place: &Place, more: Value) -> Value {
    let head = json!({
        "structure": structure, "path": place.path.display().to_string(), "disk": place.disk.0, "file": place.file,
        "offset": place.offset,
    });
    join(head, more)
}

fn with<T: ?Sized>(head: Value, found: Result<&T, &Defect>, fields: impl FnOnce(&T) -> Value) -> Value {
    match found {
        Ok(found) => join(head, fields(found)),
        Err(defect) => defective(head, Some(defect)),
    }
}

fn defective(head: Value, defect: Option<&Defect>) -> Value {
    match defect {
        None => head,
        Some(defect) => join(head, json!({ "defect": defect.to_string() })),
    }
}

fn superblock(superblock: &Superblock) -> Value {
    let geometry = &superblock.geometry;
    let members = superblock.members.iter().map(|member| {
        let class = match member.class {
            DiskClass::Flash => "flash",
            DiskClass::Rotational => "rotational",
        };
        let state = match member.state {
            MemberState::InSync => "in sync",
            MemberState::Behind => "behind",
            MemberState::Out => "out",
        };
        json!({
            "disk_uuid": hex::encode(member.disk),
            "class": class,
            "group": member.group.0,
            "state": state,
            "removed": member.removed,
            "own_filesystem": member.own_filesystem,
            "epoch_last": member.epoch_last,
            "joined": member.joined,
        })
    });
    let groups = superblock.groups.iter().map(|role| match role {
        GroupRole::Set => "set",
        GroupRole::Metadata => "metadata",
    });
    // Runs of equal numbers would be all there is to see of it; how many slots each shard has says as much.
    let mut slots = vec![0u32; usize::from(superblock.shard_count)];
    superblock.slot_map.iter().for_each(|&shard| slots[usize::from(shard)] += 1);
    json!({
        "sequence": superblock.sequence,
        "state": match superblock.state {
            State::Formatting => "formatting",
            State::Ready => "ready",
        },
        "deployment": hex::encode(superblock.deployment),
        "set": hex::encode(superblock.set),
        "disk_uuid": hex::encode(superblock.disk),
        "disk": superblock.disk_index,
        "code": superblock.code,
        "hash": superblock.hash,
        "k": geometry.k,
        "m": geometry.m,
        "strip_len": geometry.strip_len,
        "log_slot_len": geometry.log_slot_len,
        "data_slot_len": geometry.data_slot_len,
        "table_slot_len": geometry.table_slot_len,
        "epoch": superblock.epoch,
        "members": members.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "homes": superblock.homes.iter().map(|home| home.0).collect::<Vec<_>>(),
        "shard_count": superblock.shard_count,
        "slots_per_shard": slots,
    })
}

fn root(root: &Root) -> Value {
    json!({
        "sequence": root.sequence,
        "deployment": hex::encode(root.deployment),
        "epoch": root.epoch,
        "manifest": root.manifest.iter().map(placement).collect::<Vec<_>>(),
        "manifest_len": root.manifest_len,
        "manifest_crc": format!("{:08x}", root.manifest_crc),
        "log": {
            "extent": root.log.extent.0, "offset": root.log.offset, "sequence": root.log.sequence,
            "previous": hex::encode(root.log.previous),
        },
        "next_extent": root.next_extent,
        "clock_floor": root.clock_floor,
    })
}

fn placement(placement: &Placement) -> Value {
    let columns =
        placement.columns.iter().map(|column| json!({ "disk": column.disk.0, "slot": column.slot }));
    json!({
        "extent": placement.id.0,
        "class": match placement.class {
            ExtentClass::Log => "log",
            ExtentClass::Data => "data",
            ExtentClass::Table => "table",
        },
        "columns": columns.collect::<Vec<_>>(),
    })
}

fn extent_entry(entry: &ExtentEntry) -> Value {
    let more = json!({ "sealed": entry.sealed, "live_len": entry.live_len, "next_block": entry.next_block });
    let nonce = if entry.placement.class == ExtentClass::Log {
        json!({ "nonce": hex::encode(entry.nonce) })
    } else {
        json!({})
    };
    join(join(placement(&entry.placement), more), nonce)
}

fn manifest_of(shard: u16, manifest: &Manifest, index: &Result<IndexManifest, Defect>) -> Value {
    let head = json!({
        "structure": "manifest", "shard": shard,
        "extents": manifest.extents.iter().map(extent_entry).collect::<Vec<_>>(),
    });
    with(head, index.as_ref(), |index| {
        let level = |tables: &Vec<TableDescriptor>| tables.iter().map(descriptor).collect::<Vec<_>>();
        json!({ "index_levels": index.levels.iter().map(level).collect::<Vec<_>>() })
    })
}

fn descriptor(table: &TableDescriptor) -> Value {
    let more = json!({
        "len": table.len, "entries": table.entry_count, "tombstones": table.tombstone_count, "sequence": table.sequence,
        "min_key": key(&table.min_key), "max_key": key(&table.max_key),
    });
    join(placement(&table.placement), more)
}

fn log_header(header: &LogHeader) -> Value {
    json!({
        "deployment": hex::encode(header.deployment), "of_shard": header.shard, "of_extent": header.extent.0,
        "epoch": header.epoch, "nonce": hex::encode(header.nonce),
    })
}

fn batch_header(header: &BatchHeader) -> Value {
    json!({
        "extent": header.extent.0,
        "epoch": header.epoch,
        "sequence": header.sequence,
        "hash": hex::encode(header.hash()),
        "previous": hex::encode(header.previous),
        "clock": header.clock,
        "record_count": header.record_count,
        "records_len": header.records_len,
        "payload_len": header.payload_len,
        "disk_len": header.disk_len(),
    })
}

fn record(record: &Record) -> Value {
    let changes = |deltas: &[LiveDelta]| {
        let delta = |delta: &LiveDelta| json!({ "extent": delta.extent.0, "bytes": delta.bytes, "end_block": delta.end_block });
        deltas.iter().map(delta).collect::<Vec<_>>()
    };
    match record {
        Record::Put { key: of, value, inline, deltas } => {
            let inline = inline.map(|span| json!({ "offset": span.offset, "len": span.len }));
            let head = json!({ "kind": "put", "inline": inline, "deltas": changes(deltas) });
            join(head, entry(of, value))
        }
        Record::Delete { key: of, deltas } => {
            json!({ "kind": "delete", "key": key(of), "deltas": changes(deltas) })
        }
        Record::ExtentOpened { placement: place, nonce } => {
            let head = json!({ "kind": "extent opened", "nonce": hex::encode(nonce) });
            join(head, placement(place))
        }
        Record::ExtentSealed { extent } => json!({ "kind": "extent sealed", "extent": extent.0 }),
    }
}

fn table_summary(table: &TableSummary) -> Value {
    let more = json!({
        "epoch": table.epoch, "sequence": table.sequence, "len": table.len, "entries": table.entry_count,
        "tombstones": table.tombstone_count, "data_blocks": table.block_count, "filter_len": table.filter_len,
        "directory_len": table.directory_len, "min_key": key(&table.min_key), "max_key": key(&table.max_key),
    });
    join(placement(&table.placement), more)
}

fn chunk(chunk: &DirectoryChunk) -> Value {
    let entries = chunk.entries.iter().map(|entry| {
        let part = entry
            .owner
            .part
            .map(|(upload, number)| json!({ "upload": hex::encode(upload), "number": number }));
        json!({
            "content": format!("{:?}", entry.content).to_lowercase(),
            "block": entry.block,
            "len": entry.len,
            "body_offset": entry.body_offset,
            "last": entry.last,
            "body_uuid": hex::encode(entry.owner.body),
            "begun": entry.owner.begun,
            "bucket_id": entry.owner.bucket,
            "name": text(&entry.owner.name),
            "part": part,
            "data_crcs": crcs(&entry.data_crcs),
            "parity_crcs": crcs(&entry.parity_crcs),
        })
    });
    json!({
        "block": chunk.block, "epoch": chunk.epoch, "lease": chunk.lease, "placement": placement(&chunk.placement),
        "entries": entries.collect::<Vec<_>>(),
    })
}

fn pack(
    head: Value,
    of: &DirectoryEntry,
    lost: &[Range<u64>],
    objects: &Result<Vec<PackItem>, Defect>,
) -> Value {
    let head = join(
        head,
        json!({ "block": of.block, "len": of.len, "body_uuid": hex::encode(of.owner.body), "begun": of.owner.begun }),
    );
    let runs = lost.iter().map(|run| format!("bytes {} to {} cannot be had", run.start, run.end));
    let mut defects: Vec<String> = runs.collect();
    let listed = match objects {
        Err(defect) => {
            defects.push(format!("its list: {defect}"));
            json!({})
        }
        Ok(objects) => {
            let object = |item: &PackItem| {
                let place = json!({ "offset": item.offset, "len": item.len });
                let is_shown = !item.value.is_empty();
                let of =
                    if is_shown { entry(&item.key, &item.value) } else { json!({ "key": key(&item.key) }) };
                join(place, of)
            };
            json!({ "objects": objects.iter().map(object).collect::<Vec<_>>() })
        }
    };
    let head = join(head, listed);
    if defects.is_empty() { head } else { join(head, json!({ "defects": defects })) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn crcs(crcs: &[u32]) -> Vec<String> {
    crcs.iter().map(|crc| format!("{crc:08x}")).collect()
}

fn key(bytes: &[u8]) -> Value {
    match Key::decode(bytes) {
        Ok(Key::Object { bucket, name, version }) => {
            let version = version.hybrid_time().map(|_| hex::encode(version.0));
            json!({ "family": "object", "bucket_id": bucket, "name": text(&name), "version": version })
        }
        Ok(Key::Upload { bucket, name, upload }) => {
            json!({ "family": "upload", "bucket_id": bucket, "name": text(&name), "upload": hex::encode(upload) })
        }
        Ok(Key::Part { bucket, name, upload, part }) => json!({
            "family": "part", "bucket_id": bucket, "name": text(&name), "upload": hex::encode(upload), "number": part,
        }),
        Ok(Key::Bucket { name }) => json!({ "family": "bucket", "name": text(&name) }),
        Ok(Key::Blob { bucket, name }) => {
            json!({ "family": "blob", "bucket_id": bucket, "name": text(&name) })
        }
        Ok(Key::Background { name }) => json!({ "family": "background", "name": text(&name) }),
        Err(error) => json!({ "bytes": hex::encode(bytes), "undecodable": error.to_string() }),
    }
}

/// An entry of the index: its key, and the value as its kind has it.
fn entry(key_bytes: &[u8], bytes: &[u8]) -> Value {
    let decoded = match Key::decode(key_bytes) {
        Ok(Key::Object { .. }) => value::decode::<Object>(bytes).map(|object| object_of(&object)),
        Ok(Key::Upload { .. }) => value::decode::<Upload>(bytes).map(|upload| upload_of(&upload)),
        Ok(Key::Part { .. }) => value::decode::<UploadedPart>(bytes).map(|part| uploaded_part(&part)),
        Ok(Key::Bucket { .. }) => value::decode::<Bucket>(bytes).map(|bucket| bucket_of(&bucket)),
        Ok(Key::Background { .. }) => value::decode::<ScrubProgress>(bytes).map(|progress| scrub(&progress)),
        Ok(Key::Blob { .. }) | Err(_) => Ok(json!({ "bytes": hex::encode(bytes) })),
    };
    let inline = value::inline_place(bytes)
        .map(|place| json!({ "extent": place.extent.0, "offset": place.offset, "len": place.len }));
    let value = match decoded {
        Ok(value) => value,
        Err(error) => json!({ "undecodable": error.to_string() }),
    };
    let head = json!({ "key": key(key_bytes), "value": value });
    match inline {
        None => head,
        Some(inline) => join(head, json!({ "inline_place": inline })),
    }
}

fn scrub(progress: &ScrubProgress) -> Value {
    let marks = |marks: &[ScrubMark]| -> Vec<Value> {
        marks.iter().map(|mark| json!({ "extent": mark.extent, "at": mark.at })).collect()
    };
    json!({
        "extent": progress.cursor, "marks": marks(&progress.marks), "previous_marks": marks(&progress.previous),
    })
}

fn checksum(checksum: &Checksum) -> Value {
    json!({
        "algorithm": checksum.algorithm, "composite": checksum.composite, "value": hex::encode(&checksum.value),
    })
}

fn footprint(footprint: &[Footprint]) -> Vec<Value> {
    let print = |print: &Footprint| json!({ "extent": print.extent, "bytes": print.bytes, "end_block": print.end_block });
    footprint.iter().map(print).collect()
}

fn striped(striped: &Striped) -> Value {
    let segments = striped
        .segments
        .iter()
        .map(|segment| json!({ "extent": segment.extent, "block": segment.block, "len": segment.len }));
    json!({ "len": striped.len, "segments": segments.collect::<Vec<_>>(), "crcs": crcs(&striped.crcs) })
}

fn part_body(body: &PartBody) -> Value {
    match body {
        PartBody::Striped(body) => json!({ "striped": striped(body) }),
        PartBody::Spilled { map } => json!({ "spilled": striped(map) }),
    }
}

fn object_of(object: &Object) -> Value {
    let part = |part: &Part| {
        let checksum = part.checksum.as_ref().map(checksum);
        json!({ "number": part.number, "len": part.len, "checksum": checksum, "body": part_body(&part.body) })
    };
    let body = match &object.body {
        Body::Inline { crcs: of } => json!({ "inline": { "crcs": crcs(of) } }),
        Body::Striped(body) => json!({ "striped": striped(body) }),
        Body::Spilled { map } => json!({ "spilled": striped(map) }),
        Body::Parts(parts) => json!({ "parts": parts.iter().map(part).collect::<Vec<_>>() }),
        Body::SpilledParts { map } => json!({ "spilled_parts": striped(map) }),
        Body::Packed(of) => json!({
            "packed": { "pack": striped(&of.pack), "offset": of.offset, "crcs": crcs(&of.crcs) },
        }),
    };
    let span = |part: &PartSpan| json!({ "number": part.number, "len": part.len, "checksum": part.checksum.as_ref().map(checksum) });
    let merged_parts = match object.merged_parts() {
        Ok(parts) => json!(parts.map(|parts| parts.iter().map(span).collect::<Vec<_>>())),
        Err(error) => json!({ "defect": error.to_string() }),
    };
    let record = match object.record_place() {
        Ok(place) => json!(place.as_ref().map(striped)),
        Err(error) => json!({ "defect": error.to_string() }),
    };
    json!({
        "uuid": hex::encode(object.uuid),
        "modified": object.modified,
        "len": object.len,
        "etag": hex::encode(object.etag),
        "part_count": object.part_count,
        "merged_parts": merged_parts,
        "record": record,
        "attributes": pairs(&object.attributes),
        "checksum": object.checksum.as_ref().map(checksum),
        "body": body,
        "footprint": footprint(&object.footprint),
        "extensions": object.extensions.iter().map(|extension| extension.id).collect::<Vec<_>>(),
    })
}

fn uploaded_part(part: &UploadedPart) -> Value {
    json!({
        "uuid": hex::encode(part.uuid),
        "modified": part.modified,
        "len": part.len,
        "etag": hex::encode(part.etag),
        "checksum": part.checksum.as_ref().map(checksum),
        "body": part_body(&part.body),
        "footprint": footprint(&part.footprint),
        "extensions": part.extensions.iter().map(|extension| extension.id).collect::<Vec<_>>(),
    })
}

fn upload_of(upload: &Upload) -> Value {
    let state = match &upload.state {
        UploadState::Open => json!("open"),
        UploadState::Aborted => json!("aborted"),
        UploadState::Completed { object, at, .. } => json!({ "completed_as": hex::encode(object), "at": at }),
    };
    json!({
        "initiated": upload.initiated,
        "attributes": pairs(&upload.attributes),
        "checksum_algorithm": upload.checksum_algorithm,
        "checksum_composite": upload.checksum_composite,
        "state": state,
    })
}

fn bucket_of(bucket: &Bucket) -> Value {
    let settings: Map<String, Value> =
        bucket.settings.iter().map(|(name, bytes)| (name.clone(), text(bytes).into())).collect();
    json!({
        "id": bucket.id, "name": bucket.name, "created": bucket.created, "deleting": bucket.deleting,
        "settings": settings,
    })
}

fn pairs(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

#[cfg(test)]
mod tests {
    use basalt_engine::body::directory::{Content, Owner};
    use basalt_engine::extent::{Column, DiskIndex, ExtentId};
    use basalt_engine::index::key::{self, VersionOrder};

    use super::*;

    #[test]
    fn a_pack_is_shown_with_its_objects_and_what_is_wrong_with_it() {
        let column = |disk| Column { disk: DiskIndex(disk), slot: 3 };
        let placement =
            Placement { id: ExtentId(9), class: ExtentClass::Data, columns: vec![column(0), column(1)] };
        let entry = DirectoryEntry {
            block: 7,
            len: 500,
            body_offset: 0,
            last: true,
            data_crcs: vec![1],
            parity_crcs: vec![1],
            content: Content::Pack,
            owner: Owner { body: [5; 16], begun: 11, ..Owner::default() },
        };
        let key = key::object(2, b"folder/key", VersionOrder::NULL);
        let listed = PackItem { key, value: Vec::new(), offset: 0, len: 400 };
        let item = |lost, objects| Item::Pack {
            shard: 1,
            placement: placement.clone(),
            entry: Box::new(entry.clone()),
            lost,
            objects,
        };
        let whole = of(&item(Vec::new(), Ok(vec![listed.clone()])));
        assert_eq!(
            (&whole["structure"], &whole["extent"], &whole["block"]),
            (&json!("pack"), &json!(9), &json!(7))
        );
        let object = &whole["objects"][0];
        assert_eq!((&object["len"], &object["key"]["name"]), (&json!(400), &json!("folder/key")));
        assert!(whole.get("defects").is_none() && object.get("value").is_none());
        let text = super::super::text::of(&whole);
        assert!(text.starts_with("pack\n") && text.contains("name: folder/key"), "{text}");
        let damaged = of(&item(std::iter::once(0..100).collect(), Ok(vec![listed])));
        assert_eq!(damaged["defects"], json!(["bytes 0 to 100 cannot be had"]));
        let defect = Defect::Short { len: 0 };
        assert!(
            of(&item(Vec::new(), Err(defect)))["defects"][0]
                .as_str()
                .is_some_and(|text| text.contains("list"))
        );
    }
}
