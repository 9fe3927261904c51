//! The order of the tasks of one nexus at one logical unit, by their task attributes (SAM-5 8.6).

use std::collections::VecDeque;

/// TASK ATTRIBUTE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskAttribute {
    /// Begins when all ordered and head-of-queue tasks before it have ended.
    Simple,
    /// Begins when all tasks before it have ended; those after it wait.
    Ordered,
    /// Begins at once.
    HeadOfQueue,
}

/// What becomes of a task that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Begin it now.
    Begin,
    /// It waits; [`TaskSet::next_to_begin`] will name it.
    Waits,
    /// There are too many: TASK SET FULL.
    Full,
}

/// Tasks of one nexus at one logical unit: those that were begun, counted, and those that wait, in order.
#[derive(Debug)]
pub struct TaskSet {
    simple: u32,
    ordered: u32,
    head: u32,
    waiting: VecDeque<(u32, TaskAttribute)>,
    waiting_max: usize,
}

impl TaskSet {
    /// An empty set in which at most `waiting_max` tasks wait.
    #[must_use]
    pub fn new(waiting_max: usize) -> Self {
        Self { simple: 0, ordered: 0, head: 0, waiting: VecDeque::with_capacity(waiting_max), waiting_max }
    }

    /// Takes the task `id` in.
    #[inline]
    pub fn admit(&mut self, id: u32, attribute: TaskAttribute) -> Admission {
        let free = attribute == TaskAttribute::HeadOfQueue || self.waiting.is_empty();
        if free && self.may_begin(attribute) {
            self.count(attribute, 1);
            return Admission::Begin;
        }
        if self.waiting.len() >= self.waiting_max {
            return Admission::Full;
        }
        self.waiting.push_back((id, attribute));
        Admission::Waits
    }

    /// Says that a task that was begun has ended, in whatever way.
    #[inline]
    pub fn ended(&mut self, attribute: TaskAttribute) {
        self.count(attribute, -1);
    }

    /// The next task that may begin now; to be called until there is none.
    #[inline]
    pub fn next_to_begin(&mut self) -> Option<u32> {
        let (id, attribute) = *self.waiting.front()?;
        if !self.may_begin(attribute) {
            return None;
        }
        self.waiting.pop_front();
        self.count(attribute, 1);
        Some(id)
    }

    /// Takes a waiting task out (it was aborted); `false`: it does not wait.
    pub fn remove(&mut self, id: u32) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(other, _)| *other != id);
        self.waiting.len() != before
    }

    fn may_begin(&self, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::HeadOfQueue => true,
            TaskAttribute::Simple => self.ordered == 0 && self.head == 0,
            TaskAttribute::Ordered => self.simple == 0 && self.ordered == 0 && self.head == 0,
        }
    }

    fn count(&mut self, attribute: TaskAttribute, by: i32) {
        let field = match attribute {
            TaskAttribute::Simple => &mut self.simple,
            TaskAttribute::Ordered => &mut self.ordered,
            TaskAttribute::HeadOfQueue => &mut self.head,
        };
        let Some(next) = field.checked_add_signed(by) else { panic!("a task has ended that was not begun") };
        *field = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn begin_all(set: &mut TaskSet, begun: &mut Vec<u32>) {
        while let Some(id) = set.next_to_begin() {
            begun.push(id);
        }
    }

    proptest! {
        #[test]
        fn nothing_overtakes_an_ordered_task_but_the_head_of_the_queue(
            steps in prop::collection::vec((0..3_u8, any::<bool>(), any::<prop::sample::Index>()), 1..80)
        ) {
            let mut set = TaskSet::new(1000);
            let mut tasks = Vec::new();
            let (mut begun, mut ended): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
            for (kind, ends_one, which) in steps {
                let attribute = [TaskAttribute::Simple, TaskAttribute::Ordered, TaskAttribute::HeadOfQueue]
                    [usize::from(kind)];
                let id = u32::try_from(tasks.len()).unwrap();
                tasks.push(attribute);
                if set.admit(id, attribute) == Admission::Begin {
                    begun.push(id);
                }
                let running: Vec<u32> = begun.iter().filter(|id| !ended.contains(id)).copied().collect();
                if ends_one && !running.is_empty() {
                    let id = running[which.index(running.len())];
                    set.ended(tasks[id as usize]);
                    ended.push(id);
                    begin_all(&mut set, &mut begun);
                }
                // Whatever runs beside an ordered task is older head-of-queue or came later as such.
                let running: Vec<u32> = begun.iter().filter(|id| !ended.contains(id)).copied().collect();
                let ordered = running.iter().filter(|id| tasks[**id as usize] == TaskAttribute::Ordered).count();
                let simple = running.iter().filter(|id| tasks[**id as usize] == TaskAttribute::Simple).count();
                prop_assert!(ordered <= 1 && (ordered == 0 || simple == 0));
            }
            // In the end all have begun, in their order but for heads of the queue.
            while let Some(id) = begun.iter().find(|id| !ended.contains(id)).copied() {
                set.ended(tasks[id as usize]);
                ended.push(id);
                begin_all(&mut set, &mut begun);
            }
            prop_assert_eq!(begun.len(), tasks.len());
            let others: Vec<u32> =
                begun.into_iter().filter(|id| tasks[*id as usize] != TaskAttribute::HeadOfQueue).collect();
            prop_assert!(others.is_sorted());
        }
    }

    #[test]
    fn waiting_tasks_are_bounded_and_can_be_taken_out() {
        let mut set = TaskSet::new(1);
        assert_eq!(set.admit(1, TaskAttribute::Ordered), Admission::Begin);
        assert_eq!(set.admit(2, TaskAttribute::Simple), Admission::Waits);
        assert_eq!(set.admit(3, TaskAttribute::Simple), Admission::Full);
        assert_eq!(set.admit(4, TaskAttribute::HeadOfQueue), Admission::Begin);
        assert!(set.remove(2) && !set.remove(2));
        set.ended(TaskAttribute::Ordered);
        assert_eq!(set.next_to_begin(), None);
    }
}
