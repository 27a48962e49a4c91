// js-libp2p's dependencies use built-ins of Node 22; Node 20 gets them here (node --import ./polyfill.mjs).
Promise.withResolvers ??= function () {
  let resolve
  let reject
  const promise = new this((res, rej) => { resolve = res; reject = rej })
  return { promise, resolve, reject }
}
Promise.try ??= function (callback, ...values) {
  return new this((resolve) => resolve(callback(...values)))
}
