// The view library in one import: preact with htm instead of a compiler.
import { h, render } from "../vendor/preact.mjs";
import htm from "../vendor/htm.mjs";

export { h, render };
export { useCallback, useEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";
export const html = htm.bind(h);
