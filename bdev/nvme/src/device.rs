//! What a controller's thread needs of a device: VFIO's, or a model.

use std::fmt::Debug;
use std::sync::Arc;

use crate::dma::Mappings;
use crate::model::Model;
use crate::register::Registers;

/// A device that this process has, until the value is dropped.
pub trait Device: Send + Debug {
    /// Its registers.
    fn registers(&self) -> Arc<dyn Registers>;

    /// What memory it reaches.
    fn mappings(&self) -> Arc<Mappings>;

    /// Keeps the device from memory, whatever it does: for one that does not stop when it is told to.
    fn cut_off(&mut self);

    /// Whether somebody (the kernel, before it is unplugged) wants it back.
    fn is_wanted_back(&mut self) -> bool;
}

/// A model of a device; its addresses are this process's.
impl Device for Arc<Model> {
    fn registers(&self) -> Arc<dyn Registers> {
        Self::clone(self)
    }

    fn mappings(&self) -> Arc<Mappings> {
        Mappings::new(true)
    }

    fn cut_off(&mut self) {
        self.inner().faults.gone = true;
    }

    fn is_wanted_back(&mut self) -> bool {
        self.inner().wanted_back
    }
}
