"""A processor as a platform of verl, whose engines know accelerators alone; imported before they are."""

import torch
import verl.models.transformers.monkey_patch as patches
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_cuda import PlatformCUDA


@platform_manager.PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformCUDA):
    device_name, vendor_name, device_module = "cpu", "cpu", torch.cpu

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def communication_backend_name(self):
        return "gloo"

    def empty_cache(self):
        pass

    def synchronize(self, device_index=None):
        pass


platform_manager.set_platform(PlatformCPU())
# verl 0.9.1 patches a class that TRL 1.16 no longer has; where there is no TRL it does not.
patches.is_trl_available = lambda: False
