// Files that are dropped or pasted.

import { byId } from './dom.js';

function fileOf(transfer) {
  return transfer?.files?.[0];
}

/// Calls `into` with where a file was dropped or pasted, and the file.
export function listenForFiles(into) {
  let depth = 0;
  const hasFile = event => [...(event.dataTransfer?.types ?? [])].includes('Files');
  const close = () => {
    depth = 0;
    byId('curtain').hidden = true;
  };
  addEventListener('dragenter', event => {
    if (!hasFile(event)) return;
    depth += 1;
    byId('curtain').hidden = Boolean(event.target.closest?.('.drop'));
  });
  addEventListener('dragleave', () => {
    depth -= 1;
    if (depth <= 0) close();
  });
  addEventListener('dragover', event => {
    if (hasFile(event)) event.preventDefault();
  });
  addEventListener('drop', event => {
    if (!hasFile(event)) return;
    event.preventDefault();
    close();
    const file = fileOf(event.dataTransfer);
    if (file) into(event.target, file);
  });
  addEventListener('paste', event => {
    const file = fileOf(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    into(event.target, file);
  });
}
