//! Groups of disks: the erasure sets of a deployment, and disks that hold log and index alone.
//!
//! Members of one group stand in for each other, those of different ones do not. A data extent lies on one set. A shard has one
//! home for its log, its tables and its roots: the metadata group if there is one, else one of the sets
//! (docs/decisions/0015).

use super::DiskIndex;
use super::members::MemberState;

/// One group among those of the deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIndex(pub u8);

/// What the disks of a group hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupRole {
    /// Columns of data extents, and what shards have there that are at home in it.
    Set = 1,
    /// Log, tables and roots of every shard, and nothing else.
    Metadata = 2,
}

/// The groups of a deployment and who belongs to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Disks of each group that it can do without, as formatted.
    parity: u8,
    roles: Vec<GroupRole>,
    /// By disk.
    of_disk: Vec<GroupIndex>,
}

impl Groups {
    #[must_use]
    pub fn new(parity: u8, roles: Vec<GroupRole>, of_disk: Vec<GroupIndex>) -> Groups {
        Groups { parity, roles, of_disk }
    }

    /// All disks in one set.
    #[must_use]
    pub fn one(parity: u8, disk_count: usize) -> Groups {
        Groups::new(parity, vec![GroupRole::Set], vec![GroupIndex(0); disk_count])
    }

    #[must_use]
    pub fn disk_count(&self) -> usize {
        self.of_disk.len()
    }

    #[must_use]
    pub fn all(&self) -> impl ExactSizeIterator<Item = GroupIndex> + use<> {
        (0..u8::try_from(self.roles.len()).expect("fewer groups than disks")).map(GroupIndex)
    }

    #[must_use]
    pub fn role(&self, group: GroupIndex) -> GroupRole {
        self.roles[usize::from(group.0)]
    }

    /// The groups that data extents are placed on.
    pub fn sets(&self) -> impl Iterator<Item = GroupIndex> + '_ {
        self.all().filter(|&group| self.role(group) == GroupRole::Set)
    }

    /// What people call a group: metadata, or a set by its number.
    #[must_use]
    pub fn name(&self, group: GroupIndex) -> String {
        match self.role(group) {
            GroupRole::Metadata => "metadata".to_owned(),
            GroupRole::Set => {
                let before = self.sets().filter(|&other| other < group).count();
                format!("set {before}")
            }
        }
    }

    #[must_use]
    pub fn of(&self, disk: DiskIndex) -> GroupIndex {
        self.of_disk[usize::from(disk.0)]
    }

    /// The disks of a group, in member order.
    #[must_use]
    pub fn disks(&self, group: GroupIndex) -> Vec<DiskIndex> {
        let disks = (0..).map(DiskIndex).zip(&self.of_disk);
        disks.filter(|&(_, &of)| of == group).map(|(disk, _)| disk).collect()
    }

    /// Disks of `group` that must be in sync for everything on it to be there.
    #[must_use]
    pub fn needed(&self, group: GroupIndex) -> usize {
        let count = self.of_disk.iter().filter(|&&of| of == group).count();
        // Log and tables have m+1 copies, on as many disks as there are.
        count.saturating_sub(usize::from(self.parity)).max(1)
    }

    #[must_use]
    pub fn in_sync(&self, group: GroupIndex, states: &[MemberState]) -> usize {
        let of_group = self.of_disk.iter().zip(states).filter(|&(&of, _)| of == group);
        of_group.filter(|&(_, &state)| state == MemberState::InSync).count()
    }

    /// Whether every group has the disks that it needs.
    #[must_use]
    pub fn are_enough(&self, states: &[MemberState]) -> bool {
        self.tolerated(states).is_some()
    }

    /// Further disks that may fail, whichever they are, before something is lost; `None` when something is.
    #[must_use]
    pub fn tolerated(&self, states: &[MemberState]) -> Option<usize> {
        let spare = |group| self.in_sync(group, states).checked_sub(self.needed(group));
        self.all().map(spare).min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_numbered_and_metadata_is_called_so() {
        let roles = vec![GroupRole::Metadata, GroupRole::Set, GroupRole::Set];
        let groups = Groups::new(1, roles, (0..3).map(GroupIndex).collect());
        let names: Vec<String> = groups.all().map(|group| groups.name(group)).collect();
        assert_eq!(names, ["metadata", "set 0", "set 1"]);
    }

    const IN: MemberState = MemberState::InSync;
    const OUT: MemberState = MemberState::Out;

    /// Two sets of 2+1 and two disks for metadata.
    fn groups() -> Groups {
        let roles = vec![GroupRole::Set, GroupRole::Set, GroupRole::Metadata];
        Groups::new(1, roles, [0, 0, 0, 1, 1, 1, 2, 2].map(GroupIndex).to_vec())
    }

    #[test]
    fn disks_belong_to_one_group_each() {
        let groups = groups();
        assert_eq!(groups.disks(GroupIndex(1)), [3, 4, 5].map(DiskIndex));
        assert_eq!(groups.of(DiskIndex(7)), GroupIndex(2));
        assert_eq!(groups.sets().collect::<Vec<_>>(), [GroupIndex(0), GroupIndex(1)]);
        assert_eq!(groups.all().map(|group| groups.needed(group)).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn each_group_loses_disks_for_itself() {
        let groups = groups();
        let mut states = [IN; 8];
        assert_eq!(groups.tolerated(&states), Some(1));
        // One disk of each: nothing is lost, and nothing more may fail.
        for disk in [0, 4, 6] {
            states[disk] = OUT;
            assert_eq!(groups.tolerated(&states), Some(0));
        }
        states[7] = OUT;
        assert_eq!(groups.tolerated(&states), None);
        assert!(!groups.are_enough(&states));
    }

    #[test]
    fn more_metadata_disks_than_copies_lose_no_more_than_the_copies_allow() {
        let groups = Groups::new(1, vec![GroupRole::Metadata], vec![GroupIndex(0); 4]);
        assert_eq!(groups.needed(GroupIndex(0)), 3);
        // Fewer than there should be copies: one of them must stay.
        let groups = Groups::new(2, vec![GroupRole::Metadata], vec![GroupIndex(0); 2]);
        assert_eq!(groups.needed(GroupIndex(0)), 1);
    }
}
