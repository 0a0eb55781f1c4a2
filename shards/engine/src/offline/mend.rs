//! Writing right bytes over wrong ones.
//!
//! In place, because that is what makes a drive give a sector that it cannot read another home. What was written is read back
//! before it counts, and only bytes that redundancy vouches for are ever written.

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, File, WriteMode};

use super::media::{Defect, read};
use super::set::OfflineDisk;

/// Puts `bytes`, whole blocks, at `offset` of a file of `disk`, durably. A file that is missing is made, and one that is too short
/// grows to a multiple of `grain`.
///
/// # Errors
/// What the device said, or that other bytes came back.
pub(super) async fn mend(
    core: &Core,
    disk: &OfflineDisk,
    file: &str,
    offset: u64,
    bytes: &[u8],
    grain: u64,
) -> Result<(), Defect> {
    assert!(bytes.len().is_multiple_of(BLOCK_LEN), "{} bytes are no whole blocks", bytes.len());
    let io = |error: std::io::Error| Defect::from(&error);
    let opened = match disk.disk.open_file(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let created = disk.disk.create_file(file).map_err(io)?;
            disk.disk.sync().await.map_err(io)?;
            created
        }
        opened => opened.map_err(io)?,
    };
    let end = (offset + bytes.len() as u64).next_multiple_of(grain);
    if opened.len().map_err(io)? < end {
        opened.grow(end).await.map_err(io)?;
        opened.sync().await.map_err(io)?;
    }
    write(core, &opened, offset, bytes).await.map_err(io)?;
    if read(core, &opened, offset, bytes.len()).await? == bytes {
        Ok(())
    } else {
        Err(Defect::Contradiction("other bytes came back than were written".to_owned()))
    }
}

async fn write(core: &Core, file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    for (index, piece) in bytes.chunks(BUF_LEN_MAX).enumerate() {
        let mut buf = core.arena().alloc(piece.len()).await;
        buf.copy_from_slice(piece);
        file.write_at(buf.freeze(), offset + (index * BUF_LEN_MAX) as u64, WriteMode::Stable).await?;
    }
    Ok(())
}
